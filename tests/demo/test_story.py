"""The demo tells its story offline, compares arms fairly, and leaves a model anyone can load."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from dcsurgery.demo import run_demo
from dcsurgery.demo.arms import ARMS, STORY
from dcsurgery.demo.checkpoints import embedded, unpack
from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.outcome import Outcome, read_outcome
from dcsurgery.demo.questions import KINDS
from dcsurgery.demo.rows import exam_rows, said
from dcsurgery.demo.training import run_once
from dcsurgery.demo.training_story import _show_pictures, check_fairness, train_and_compare
from dcsurgery.demo.worker import Unit, Work, run_workers
from dcsurgery.errors import OutputExistsError, RequestError, TrainingError, VerificationError
from dcsurgery.surgery.plan_file import PLAN_FILE, read_plan
from dcsurgery.verification import verify_checkpoint
from tests.demo.full.run import run_full

pytestmark = pytest.mark.slow

SHORT = Exercise(
    steps=2, batch_size=4, train_scenes=5, val_scenes=1, test_scenes=2, probed_rows=16, looks=(1,),
    rates={"connector_lr": 1e-2, "projector_lr": 1e-2, "warmup": 0.0},
)  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The demo's own new folder, what it returned, and what it said."""
    home = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("the demo went online")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(tempfile, "tempdir", str(home))
        trained = run_demo(None, said.append, exercise=SHORT, workers=0)
    (work,) = home.glob("dcsurgery-demo-*")
    return work, trained, said


def outcomes_of(work: Path) -> list[Outcome]:
    found = [read_outcome(path.parent) for path in sorted(work.glob("runs/*/*/result.json"))]
    return [item for item in found if item is not None]


def test_the_story_names_what_it_made(told: tuple[Path, Path, list[str]]) -> None:
    work, trained, said = told
    text = "\n".join(said)
    assert [line for line in text.replace(str(work), "").split("\n") if len(line) > 80] == []
    for line in (
        "$ dcsurgery inspect tiny-llava-1",
        "$ dcsurgery convert tiny-llava-1 -o tiny-llava-1-dci",
        "$ dcsurgery verify tiny-llava-1-dci --logits",
        "$ dcsurgery convert tiny-llava-1 -o tiny-llava-1-dci-delta --form delta",
        "$ dcsurgery verify tiny-llava-1-dci-delta --logits",
    ):
        assert line in text.split("\n")
    assert str(work) in text and trained.name in text and "FAILED" not in text
    # --layers alone is refused.
    assert "dcsurgery finetune llava-hf/llava-1.5-7b-hf --connector dci" in text
    named = ("Not shown to move", "curves.png", "layers.png", "finetune", "do not operate")
    for word in (*STORY, *KINDS, *named):
        assert word in text


def test_every_arm_of_every_tower_was_trained_alike(
    told: tuple[Path, Path, list[str]],
) -> None:
    outcomes = outcomes_of(told[0])
    towers = {item.tower for item in outcomes}
    assert len(towers) == len(embedded()) >= 3
    assert len(outcomes) == len(towers) * len(STORY)
    for tower in towers:
        mine = [item for item in outcomes if item.tower == tower]
        assert {item.arm for item in mine} == set(STORY)
        assert len({(item.data_sha256, item.steps) for item in mine if item.steps}) == 1
        assert all(item.starts_as_base for item in mine)


def test_plain_transformers_answers_as_the_retrofit_did(
    told: tuple[Path, Path, list[str]],
) -> None:
    work, trained, _ = told
    assert (
        trained.parent == work
        and (trained / PLAN_FILE).is_file()
        and read_plan(trained).form == "stock"
    )
    model = AutoModelForImageTextToText.from_pretrained(trained).eval()
    assert model.config.vision_feature_layer == list(range(8))
    (mine,) = (
        item for item in outcomes_of(work) if (item.arm, item.tower) == ("retrofit", "tiny-llava-1")
    )
    exam = exam_rows(SHORT.test_seed, "test", SHORT.test_scenes)
    assert said(model, exam).tolist() == mine.answers
    processor = AutoProcessor.from_pretrained(trained)
    question = exam.questions[0]
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    talk = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    image = Image.fromarray(exam.pictures[question.scene])
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert out[0, inputs.input_ids.shape[1]].item() == mine.answers[0]


def test_all_forms_are_left_behind_and_verify(told: tuple[Path, Path, list[str]]) -> None:
    work, trained, _ = told
    for name, form in (("tiny-llava-1-dci", "stock"), ("tiny-llava-1-dci-delta", "delta")):
        assert read_plan(work / name).form == form and verify_checkpoint(work / name).passed
    assert verify_checkpoint(trained).passed


def test_pictures_are_drawn(told: tuple[Path, Path, list[str]]) -> None:
    work, _, _ = told
    for path in (work / "curves.png", work / "layers.png", *(work / "pictures").iterdir()):
        with Image.open(path) as image:
            assert image.width > 400 and len(set(image.convert("L").tobytes())) > 5


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    said: list[str] = []
    for work in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(OutputExistsError) as caught:
            run_demo(work, said.append)
        assert "--work-dir" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"] and said == []


def test_states_that_the_probe_recommends_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = unpack(embedded()[0], tmp_path / "base")
    state = SimpleNamespace(state=2, gain=SimpleNamespace(mean=0.01))
    found = {
        "states": [state], "verdict": "operate: hidden state 2",
        "recommended": SimpleNamespace(layers="2"),
    }  # fmt: skip
    monkeypatch.setattr("dcsurgery.demo.probed.probe_base", lambda base, rows: found)
    said: list[str] = []
    train_and_compare(tmp_path, [base], SHORT, 0, said.append)
    text = " ".join(" ".join(said).split())
    assert "2: 10.0" in text and "operate: hidden state 2" in text
    assert "Chosen minus control, all" in text and "Chosen minus retrofit, all" in text
    chosen = read_outcome(tmp_path / "runs/base/chosen")
    assert chosen is not None and chosen.blocks == ["2"] and chosen.starts_as_base


def test_all_differences_are_counted_and_one_of_each_kind_is_shown(
    told: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    mine = [item for item in outcomes_of(told[0]) if item.tower == "tiny-llava-1"]
    base = next(item for item in mine if item.arm == "control")
    answers, right = list(base.answers), list(base.right)
    rows = [next(row for row, was in enumerate(right) if was is wanted) for wanted in (True, False)]
    truth = exam_rows(SHORT.test_seed, "test", SHORT.test_scenes).tokens.answer
    for row in rows:  # one lost, one won
        right[row] = not right[row]
        answers[row] = int(truth[row]) if right[row] else int(truth[row]) + 1
    change = {"answers": answers, "right": right, "arm": "retrofit"}
    said: list[str] = []
    _show_pictures(tmp_path, [base, base.model_copy(update=change)], SHORT, said.append)
    text = " ".join(" ".join(said).split())
    assert "answer 2 questions differently" in text
    assert "1 won, 1 lost, 0 wrong both ways" in text
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == ["lost.png", "won.png"]


def test_an_unfair_comparison_is_refused(told: tuple[Path, Path, list[str]]) -> None:
    outcomes = outcomes_of(told[0])
    check_fairness(outcomes)
    index = next(i for i, item in enumerate(outcomes) if item.arm == "retrofit")
    for change in ({"data_sha256": "0"}, {"steps": 1}, {"starts_as_base": False}):
        unfair = list(outcomes)
        unfair[index] = outcomes[index].model_copy(update=change)
        with pytest.raises(VerificationError):
            check_fairness(unfair)


def fake_arm(
    base: Path, arm: str, seed: int, exercise: Exercise, folder: Path, layers: str | None = None
) -> Outcome:
    """Half of the answers are right; the retrofit knows colour too, and place for odd seeds."""
    found = read_outcome(folder)
    if found is not None:
        return found
    exam = exam_rows(exercise.test_seed, "test", exercise.test_scenes)
    steps = exercise.steps if ARMS[arm].trained else 0
    known = ("colour in a corner", "where") if seed % 2 else ("colour in a corner",)
    outcome = Outcome(
        tower=base.name, arm=arm, seed=seed, steps=steps, data_sha256="d" if steps else None,
        starts_as_base=arm != "random", curve=dict.fromkeys(range(steps + 1), 0.5),
        answers=exam.tokens.answer.tolist(), blocks=["0..3", "4..7"], used=[0.1, 0.2],
        right=[i % 2 == 0 or (arm == "retrofit" and question.kind in known)
               for i, question in enumerate(exam.questions)],
        kinds=exam.kinds.tolist(), seconds=1.0,
    )  # fmt: skip
    folder.mkdir(parents=True)
    outcome.write(folder)
    return outcome


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pre-training replaced by an embedded model, training by an oracle; the seeds asked for."""
    asked: list[int] = []

    def pretrain(seed: int, folder: Path, language: Path) -> None:
        assert language.name == "language"
        asked.append(seed)
        unpack(embedded()[seed % 2], folder)

    monkeypatch.setattr("tests.demo.full.run.pretrain", pretrain)
    monkeypatch.setattr("tests.demo.full.run.ensure_language", lambda seed, folder: None)
    monkeypatch.setattr("dcsurgery.demo.training.run_once", fake_arm)
    return asked


def test_full_goes_on_where_it_stopped_and_writes_the_table(
    tmp_path: Path, quick: list[int]
) -> None:
    work, said = tmp_path / "full", []
    options: dict[str, Any] = {"towers": 2, "first_seed": 40, "exercise": SHORT, "workers": 0}
    table = run_full(work, said.append, **options)
    assert quick == [40, 41]
    first = read_outcome(work / "runs/tower-40/retrofit")
    shutil.rmtree(work / "runs/tower-41/repeated")
    table.unlink()
    before = (work / "runs/tower-40/retrofit/result.json").stat().st_mtime_ns
    assert run_full(work, said.append, **options) == table and quick == [40, 41]
    assert (work / "runs/tower-40/retrofit/result.json").stat().st_mtime_ns == before
    numbers = json.loads((work / "table.json").read_text())
    assert numbers["seeds"] == [40, 41] and numbers["exercise"]["steps"] == 2
    assert first is not None and len(numbers["shares"]["retrofit"]["all"]) == 2
    assert "NaN" not in (work / "table.json").read_text()
    text = table.read_text()
    assert all(kind in text for kind in KINDS) and "p = " in text
    gains = numbers["differences"]["retrofit - control"]
    assert gains["colour in a corner"]["towers"] == [1.0, 1.0]
    assert gains["where"]["towers"] == [0.0, 1.0] and gains["size"]["low"] is None
    with pytest.raises(OutputExistsError):
        run_full(work, said.append, **{**options, "first_seed": 50})
    with pytest.raises(RequestError, match="1 towers"):
        run_full(tmp_path / "one", said.append, **{**options, "towers": 1})


def test_a_worker_is_a_process_and_its_failure_is_told(tmp_path: Path) -> None:
    names = ["whole", "broken"]
    for name in names:
        unpack(embedded()[0], tmp_path / name)
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"broken")
    (tmp_path / "runs").mkdir()
    units = [Unit(tower=name, seed=0, arm="base", worker=3) for name in names]
    told = Work(exercise=SHORT, units=units)
    (tmp_path / "work.json").write_text(told.model_dump_json())
    said: list[str] = []
    with pytest.raises(TrainingError, match="a worker failed") as caught:
        run_workers(tmp_path, told, said.append)
    assert "worker-3.log" in caught.value.hint
    assert len(said) == 1 and "1 of 2" in said[0] and "whole" in said[0]


def test_an_arm_that_was_stopped_is_cleared_but_for_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = unpack(embedded()[0], tmp_path / "base"), tmp_path / "runs"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Outcome, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            run_once(base, "retrofit", 0, SHORT, folder)
    assert {path.name for path in folder.iterdir()} == {"start", "trained", "log"}
    note = folder / "trained" / "dense_connector" / "notes.txt"
    note.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"did not write: .*notes\.txt"):
        run_once(base, "retrofit", 0, SHORT, folder)
    assert note.read_text() == "mine"
    note.unlink()
    assert run_once(base, "retrofit", 0, SHORT, folder).arm == "retrofit"
