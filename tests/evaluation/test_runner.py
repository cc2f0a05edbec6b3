from __future__ import annotations

import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

import dcsurgery
from dcsurgery.data.batches import Collator
from dcsurgery.data.conversations import ask
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import Prompter
from dcsurgery.errors import CheckpointNotFoundError, OutputExistsError, RequestError
from dcsurgery.evaluation import runner
from dcsurgery.evaluation.generation import answer_losses, generate_answers, model_inputs
from dcsurgery.evaluation.runner import EvalSettings, evaluate_checkpoints
from dcsurgery.loading.load import load_model
from dcsurgery.tiny import write_tiny_llava
from tests.tiny.idefics3 import write_tiny_idefics3
from tests.tiny.paligemma import write_tiny_paligemma
from tests.tiny.qwen2_vl import write_tiny_qwen2_vl
from tests.training.pictures import ONE, TEXT, TWO, picture, save_picture

WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": write_tiny_llava,
    "idefics3": write_tiny_idefics3,
    "qwen2_vl": write_tiny_qwen2_vl,
    "paligemma": write_tiny_paligemma,
}
Loaded = tuple[Any, Prompter]


@pytest.fixture(scope="module", params=WRITERS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = WRITERS[request.param](tmp_path_factory.mktemp("runner") / request.param)
    return load_model(folder, dtype=torch.float32), Prompter(load_processor(folder))


def test_answers_in_a_batch_are_the_answers_one_by_one(loaded: Loaded) -> None:
    model, prompter = loaded
    rows = [ONE, TWO] if prompter.suffixed else [ONE, TWO, TEXT]
    prompts = [
        prompter.prompt(row.turns[:1], [image.open() for image in row.images]) for row in rows
    ]
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    assert len(set(lengths)) > 1
    together = generate_answers(model, prompter, prompts, 12)
    assert together == [generate_answers(model, prompter, [each], 12)[0] for each in prompts]
    assert len(set(together)) == len(rows)


def test_losses_are_the_models_own(loaded: Loaded) -> None:
    model, prompter = loaded
    rows = [prompter.encode(row).values for row in (ONE, TWO)]
    for row, (loss, tokens) in zip(rows, answer_losses(model, prompter, rows), strict=True):
        inputs = model_inputs(model, Collator(prompter.processor)([row]))
        with torch.no_grad():
            wanted = model(**inputs).loss
        assert loss == pytest.approx(float(wanted), rel=1e-5)
        assert tokens == int((row["labels"] != -100).sum())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its conversion at zero and at random, and seven questions on four pictures."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_llava(folder / "base")
    dcsurgery.convert(folder / "base", folder / "dci", form="delta")
    dcsurgery.convert(folder / "base", folder / "random", form="stock", init="paper")
    for index in range(4):
        save_picture(folder / f"{index}.png", seed=index)
    rows = [
        {
            "id": f"q{index}",
            "image": f"{index % 4}.png",
            "question": f"What is {index}?",
            "type": "even" if index % 2 == 0 else "odd",
            "answer": "never said",
        }
        for index in range(6)
    ]
    rows.append({"id": "q6", "question": "And now?", "answer": "never said"})
    model = load_model(folder / "base")
    prompter = Prompter(load_processor(folder / "base"))
    for row in rows[:3]:  # the base is right on these
        shown = [Image.open(folder / row["image"]).convert("RGB")]
        (prompt,) = [prompter.prompt([ask(row["question"], 1)], shown)]
        row["answer"] = generate_answers(model, prompter, [prompt], 6)[0]
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


SETTINGS = EvalSettings(max_new_tokens=6, batch_size=2)


def evaluate(world: Path, output: Path, *names: str, **options: Any) -> Any:
    options = {"settings": SETTINGS, **options}
    return evaluate_checkpoints(
        [world / name for name in names], world / "test.json", output, **options
    )


def test_models_are_compared_on_the_same_rows(world: Path, tmp_path: Path) -> None:
    report = evaluate(world, tmp_path, "base", "dci", "random")
    base, zero, random = report.models
    assert base.score.mean == pytest.approx(3 / 7) and base.score.rows == 7
    assert base.by_type["even"].mean == pytest.approx(2 / 3)
    assert base.by_type["odd"].mean == pytest.approx(1 / 3)
    assert base.against_first is None and base.against_first_by_type == {}
    assert zero.score == base.score
    assert zero.against_first.difference == 0 and zero.against_first.p_value == 1
    assert random.score.mean < base.score.mean
    assert random.against_first.difference == random.score.mean - base.score.mean
    assert set(random.against_first_by_type) == {"even", "odd"}
    assert (report.rows, report.skipped_rows) == (7, 0)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report.model_dump(mode="json")
    with Image.open(tmp_path / "report.png") as chart:
        assert chart.format == "PNG" and chart.width > 300


def test_the_base_of_a_delta_may_have_moved(world: Path, tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base")
    dcsurgery.convert(base, tmp_path / "dci", form="delta")
    models, moved = [world / "base", tmp_path / "dci"], base.rename(tmp_path / "moved")
    options: dict[str, Any] = {"settings": EvalSettings(limit=2, max_new_tokens=2)}
    with pytest.raises(CheckpointNotFoundError) as caught:
        evaluate_checkpoints(models, world / "test.json", tmp_path / "out", **options)
    assert "eval and ask take --base" in caught.value.hint
    options |= {"base": moved, "overwrite": True}
    report = evaluate_checkpoints(models, world / "test.json", tmp_path / "out", **options)
    assert [model.model for model in report.models] == [str(model) for model in models]
    with pytest.raises(RequestError, match="no model here is one"):
        evaluate_checkpoints(models[:1], world / "test.json", tmp_path / "alone", **options)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(world, tmp_path / "whole", "base", "random")

    def stop(done: int, rows: int, model: str) -> None:
        if model.endswith("random") and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(world, tmp_path / "cut", "base", "random", progress=stop)
    answers = tmp_path / "cut" / "answers.jsonl"
    assert len(answers.read_text().splitlines()) == 1 + 7 + 4
    answers.write_bytes(answers.read_bytes()[:-9])  # as a crash leaves it
    seen: list[int] = []
    monkeypatch.setattr(runner, "load_model", _counting(seen))
    resumed = evaluate(world, tmp_path / "cut", "base", "random")
    assert len(seen) == 1
    assert resumed.models == whole.models
    lines = [(tmp_path / name / "answers.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert evaluate(world, tmp_path / "cut", "base", "random").models == whole.models
    assert len(seen) == 1


def _counting(seen: list[int]) -> Callable[..., Any]:
    def load(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        return load_model(*arguments, **options)

    return load


def test_one_model_is_in_memory_at_a_time(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []

    def load(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        assert [each() for each in alive] == [None] * len(alive)
        model = load_model(*arguments, **options)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(runner, "load_model", load)
    settings = EvalSettings(max_new_tokens=1, limit=1)
    evaluate(world, tmp_path, "base", "dci", settings=settings)
    assert len(alive) == 2


def test_another_evaluation_in_the_folder_is_not_touched(world: Path, tmp_path: Path) -> None:
    evaluate(world, tmp_path, "base")
    before = (tmp_path / "answers.jsonl").read_bytes()
    longer = EvalSettings(max_new_tokens=7)
    with pytest.raises(OutputExistsError, match=r"another evaluation .other settings"):
        evaluate(world, tmp_path, "base", settings=longer)
    with pytest.raises(OutputExistsError, match="other models"):
        evaluate(world, tmp_path, "dci")
    (tmp_path / "pictures").symlink_to(world)
    for options in ({"images": tmp_path / "pictures"}, {"split": "b"}, {"revision": "c"}):
        with pytest.raises(OutputExistsError, match="other source"):
            evaluate(world, tmp_path, "base", **options)
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    assert evaluate(world, tmp_path, "base", settings=longer, overwrite=True).rows == 7


def test_turned_pictures_are_evaluated_upright_unless_asked_raw(
    world: Path, tmp_path: Path
) -> None:
    """Oracle: the same pixels in a file without a tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(64, 32).save(tmp_path / "turned.jpg", exif=exif)
    load_image(str(tmp_path / "turned.jpg")).save(tmp_path / "exif.png")
    Image.open(tmp_path / "turned.jpg").convert("RGB").save(tmp_path / "raw.png")

    def loss(name: str, orientation: Any) -> float:
        data, out = tmp_path / f"{name}.json", tmp_path / f"{name}-{orientation}"
        data.write_text(json.dumps([{"image": name, "question": "What?", "answer": "a ball"}]))
        settings = EvalSettings(metric="loss", orientation=orientation)
        report = evaluate_checkpoints([world / "base"], data, out, settings=settings)
        assert report.settings["orientation"] == orientation
        assert json.loads((out / "report.json").read_text())["settings"] == report.settings
        return report.models[0].score.mean

    losses = {kind: loss("turned.jpg", kind) for kind in ("exif", "raw")}
    assert losses["exif"] != losses["raw"]
    for kind, found in losses.items():
        assert found == loss(f"{kind}.png", "exif")
    shutil.copytree(tmp_path / "exif.png-exif", tmp_path / "exif.png-raw")
    with pytest.raises(OutputExistsError, match="other settings"):
        loss("exif.png", "raw")


@pytest.mark.parametrize("name", ["answers.jsonl", "report.json", "report.png"])
@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_files_of_our_names_that_are_somebody_elses_are_kept(
    kind: str, name: str, world: Path, tmp_path: Path
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    mine.write_text('{"accuracy": 1}\n')
    if kind == "file":
        shutil.copy(mine, out / name)
    elif kind == "link":
        (out / name).symlink_to(mine)
    else:
        (out / name).mkdir()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=f"did not write: {name}"):
            evaluate(world, out, "base", overwrite=overwrite)
    assert os.listdir(out) == [name] and mine.read_text() == '{"accuracy": 1}\n'
    with pytest.raises(OutputExistsError, match="is not a folder"):
        evaluate(world, mine, "base", overwrite=True)


def test_notes_beside_an_evaluation_are_kept(world: Path, tmp_path: Path) -> None:
    evaluate(world, tmp_path, "base")
    (tmp_path / "notes.txt").write_text("mine")
    longer = EvalSettings(max_new_tokens=7)
    evaluate(world, tmp_path, "base", settings=longer, overwrite=True)
    (tmp_path / "answers.jsonl").unlink()
    evaluate(world, tmp_path, "base", settings=longer)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_bad_rows_are_counted_named_and_left_out_for_every_model(
    world: Path, tmp_path: Path
) -> None:
    rows = json.loads((world / "test.json").read_text())
    rows[1]["image"] = "gone.png"
    del rows[2]["answer"]
    rows[5]["question"] = "What is an <image> token?<image>"
    data = world / "bad.json"
    data.write_text(json.dumps(rows))
    settings = EvalSettings(max_new_tokens=1, max_bad="50%")
    report = evaluate_checkpoints([world / "base"], data, tmp_path / "lenient", settings=settings)
    assert (report.rows, report.skipped_rows) == (4, 3)
    assert report.skipped["q1"] == "image gone.png does not exist"
    assert report.skipped["q2"] == "it has no reference answer"
    assert report.skipped["q5"] == "its text shows 2 images, but it has 1"
    with pytest.raises(RequestError, match=r"3 of 7 rows .*q1: image gone"):
        evaluate_checkpoints([world / "base"], data, tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


def test_what_a_models_prompt_drops_is_in_the_report(world: Path, tmp_path: Path) -> None:
    """Also when the evaluation goes on, with no row left to answer."""
    rows = json.loads((world / "test.json").read_text())
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    rows[1] = {**rows[1], "messages": [*turns, {"role": "assistant", "content": "red"}]}
    data = world / "system.json"
    data.write_text(json.dumps(rows))
    deaf = world / "deaf"
    if not deaf.exists():
        write_tiny_llava(deaf)
        template = json.loads((deaf / "chat_template.json").read_text())["chat_template"]
        dropping = template.replace("in messages %}", "in messages if message.role != 'system' %}")
        (deaf / "chat_template.json").write_text(json.dumps({"chat_template": dropping}))
    models = [world / "base", deaf]
    for _ in range(2):
        report = evaluate_checkpoints(
            models, data, tmp_path / "out", images=world, settings=EvalSettings(max_new_tokens=1)
        )
        assert report.dropped == {str(deaf): {"system turn": 1}}
    plain = EvalSettings(max_new_tokens=1, prompt="plain", max_bad="20%")
    report = evaluate_checkpoints([world / "base"], data, tmp_path / "plain", settings=plain)
    assert report.dropped == {str(world / "base"): {"system turn": 1, "user turn": 6}}


def test_the_loss_is_smaller_for_what_the_model_says(world: Path, tmp_path: Path) -> None:
    report = evaluate(world, tmp_path, "base", settings=EvalSettings(metric="loss"))
    lines = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines()[1:])
    found = {line["id"]: line for line in lines}
    assert all(line["tokens"] > 1 and line["answer"] is None for line in found.values())
    total = sum(line["tokens"] for line in found.values())
    weighted = sum(line["score"] * line["tokens"] for line in found.values()) / total
    assert report.models[0].score.mean == pytest.approx(weighted)


@pytest.mark.parametrize("call", [evaluate_checkpoints, dcsurgery.ask])
def test_a_keyword_that_there_is_not_is_a_type_error(call: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="devise"):
        call("model", "data", "output", devise="cpu")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (EvalSettings(metric="bleu"), "--metric bleu is unknown"),
        (EvalSettings(batch_size=0), "--batch-size 0"),
        (EvalSettings(prompt="v2"), "--prompt v2 is unknown"),  # type: ignore[arg-type]
        (EvalSettings(limit=0), "--limit 0"),
        (EvalSettings(dtype="wide"), "--dtype wide is unknown"),
        (EvalSettings(orientation=cast(Any, "up")), "--orientation up is unknown"),
        (EvalSettings(device="toaster"), "cannot be put on toaster"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    settings: EvalSettings, reason: str, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=reason):
        evaluate(world, tmp_path / "out", "base", settings=settings)
