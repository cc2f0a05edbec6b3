"""What a training loses of its rows, and what it never reaches, is counted and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.data.batches import TrainingDataset
from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE, read_plan
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.training.finetuned import Finetuned
from dcsurgery.training.order import EpochOrder
from dcsurgery.training.settings import FREE, TrainingSettings
from dcsurgery.verification import verify_checkpoint
from tests.training.pictures import save_picture

pytestmark = pytest.mark.slow

FAST: dict[str, Any] = {
    "batch_size": 2, "micro_batch": 2, "max_steps": 3, "connector_lr": 1e-2, "projector_lr": 1e-3,
    "save_steps": 1,
}  # fmt: skip


def fast(**values: Any) -> TrainingSettings:
    return TrainingSettings(**{**FAST, **values})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lost")


@pytest.fixture(scope="module")
def delta(tiny_siglip: Path, place: Path) -> Path:
    convert_checkpoint(tiny_siglip, place / "delta", form="delta")
    return place / "delta"


def row(number: int, said: str = "red", question: str = "<image>\nWhich?", **more: Any) -> Any:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": said}]
    return {"id": f"r{number}", "image": "a.png", "conversations": turns, **more}


def write(folder: Path, rows: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(folder / "a.png", 32, 32)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


MORE = [{"from": "human", "value": "y" * 40}, {"from": "gpt", "value": "no"}]


@pytest.fixture(scope="module")
def cut_rows(place: Path) -> Path:
    """Of six rows, one loses the end of its answer and one its second exchange."""
    rows = [row(n) for n in range(6)]
    rows[1] = row(1, said="x" * 90)
    rows[4]["conversations"] += MORE
    return write(place / "cut", rows)


def test_cut_rows_are_counted_and_answers_without_an_end_apart(
    delta: Path, cut_rows: Path, place: Path
) -> None:
    settings = fast(max_length=60)
    preview = finetune_connector(delta, cut_rows, settings=settings, dry_run=True)
    assert preview.measured is not None and preview.measured.rows == 6
    found = preview.measured.losses
    assert (found.cut_rows, found.cut_answers, found.dropped) == (2, 1, {})
    done = finetune_connector(
        delta, cut_rows, place / "cut-out", settings=fast(max_length=60, max_steps=6)
    )
    assert (done.record.cut_rows, done.record.cut_answers) == (2, 1)
    (record,) = read_plan(done.output).training
    assert (record.cut_rows, record.cut_answers, record.skipped_rows) == (2, 1, 0)
    # Two epochs of three steps: every row twice.
    steps = [(step["cut_rows"], step["cut_answers"]) for step in done.result.history]
    assert tuple(map(sum, zip(*steps, strict=True))) == (4, 2)


def test_counts_go_on_with_the_training(delta: Path, cut_rows: Path, place: Path) -> None:
    """Rows that were cut before it stopped are not read again in the same epoch."""

    def stop(step: int, steps: int, words: str) -> None:
        if step == 2:
            raise RuntimeError("stop")

    out, settings = place / "again", fast(max_length=60)
    with pytest.raises(RuntimeError):
        finetune_connector(delta, cut_rows, out, settings=settings, progress=stop)
    done = finetune_connector(delta, cut_rows, out, settings=settings, resume=True)
    assert done.result.resumed_at >= 1
    assert (done.record.cut_rows, done.record.cut_answers) == (2, 1)


def test_what_the_prompt_leaves_out_is_counted(delta: Path, place: Path) -> None:
    rows = [row(n) for n in range(4)]
    rows[2]["conversations"].append({"from": "human", "value": "and?"})
    data = write(place / "dropped", rows)
    settings = fast(prompt="plain", max_steps=2)
    done = finetune_connector(delta, data, place / "plain", settings=settings)
    assert done.record.dropped == {"user turn": 4, "question after the last answer": 1}
    assert read_plan(done.output).training[0].dropped == done.record.dropped


@pytest.mark.parametrize(
    ("rows", "values", "said"),
    [
        (
            10,
            {},
            ["10 rows in batches of 128 make 1 update, too few", "--batch-size 8 --epochs 25"],
        ),
        (10, {"batch_size": 4}, ["make 3 updates, too few", "try --epochs 17"]),
        (10, {"batch_size": 4, "epochs": 3}, ["3 times, make 9 updates"]),
        (10, {"batch_size": 4, "epochs": 17}, []),
        (10, {"max_steps": 2}, []),
    ],
)
def test_few_updates_are_advised_against(
    rows: int, values: dict[str, Any], said: list[str], delta: Path, place: Path
) -> None:
    data = write(place / "few", [row(n) for n in range(rows)])
    preview = finetune_connector(delta, data, settings=TrainingSettings(**values), dry_run=True)
    text = "\n".join(preview.advice)
    assert all(words in text for words in said) and bool(text) == bool(said)


def test_a_training_says_it_before_the_first_step(delta: Path, cut_rows: Path, place: Path) -> None:
    heard: list[str] = []
    settings = fast(max_steps=None, max_length=60)
    finetune_connector(
        delta, cut_rows, place / "told", settings=settings, tell=heard.append,
        progress=lambda *step: heard.append("step"),
    )  # fmt: skip
    assert heard[2:] == ["step"] * 3
    assert "6 rows in batches of 2 make 3 updates" in heard[0]
    assert "2 rows of 6 that were looked at cut to --max-length 60, 1 of them inside" in heard[1]


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"question": "<image>" + "y" * 90}, "--max-length 129"),
        ({"image": "cut.png"}, "repair these rows"),
    ],
)
def test_too_many_bad_rows_are_found_before_the_first_step(
    change: dict[str, Any], hint: str, delta: Path, place: Path
) -> None:
    """Rows that only fail when they are encoded, none of them among the first ones."""
    rows = [row(n, **change) if n > 79 else row(n) for n in range(100)]
    data = write(place / "late", rows)
    whole = (data.parent / "a.png").read_bytes()
    # Whole at both ends, as a head and a tail show it, and broken in the middle.
    (data.parent / "cut.png").write_bytes(whole[:80] + b"\0" * 40 + whole[120:])
    steps: list[Any] = []
    with pytest.raises(RequestError, match=r"1\d of 100 rows cannot be used") as caught:
        finetune_connector(
            delta,
            data,
            place / "late-out",
            settings=fast(max_length=60),
            progress=lambda *step: steps.append(step),
        )  # fmt: skip
    assert hint in caught.value.hint and "--max-bad 1" in caught.value.hint and not steps
    assert not (place / "late-out").exists() and not (place / "late-out.training").exists()


def test_after_a_stop_at_bad_rows_it_goes_on_with_more_allowed(
    delta: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row fails when it is encoded, and is none of the rows that were measured."""
    monkeypatch.setattr(TrainingDataset, "measure", lambda self: None)
    rows = [row(n) for n in range(70)]
    rows[1] = row(1, question="<image>" + "y" * 90)
    data, out = write(place / "bad", rows), place / "bad-out"
    values = {"max_length": 60, "max_steps": 35, "save_steps": 20}
    heard: list[int] = []
    with pytest.raises(RequestError, match="1 of 70 rows cannot be used, more than 1 %") as caught:
        finetune_connector(
            delta, data, out, settings=fast(**values), progress=lambda *step: heard.append(step[0])
        )
    assert "--max-length" in caught.value.hint and "--max-bad 2%" in caught.value.hint
    # Kept up to the very step, not to the last checkpoint that was due.
    settings = fast(**values, max_bad="5%")
    done = finetune_connector(delta, data, out, settings=settings, resume=True)
    assert done.result.resumed_at == len(heard) > 0 and len(heard) != 20
    assert (done.record.skipped_rows, done.record.steps) == (1, 35)
    whole = finetune_connector(delta, data, place / "bad-whole", settings=settings)
    assert (out / DELTA_FILE).read_bytes() == (whole.output / DELTA_FILE).read_bytes()
    (line,) = (out / "dense_connector" / "bad_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "r1"


CHANGES: dict[str, Any] = {
    "save_steps": 2, "report_to": "none", "micro_batch": 1, "grad_checkpointing": True,
    "max_bad": "5%", "workers": 1,
}  # fmt: skip


def stopped(delta: Path, data: Path, out: Path, **options: Any) -> None:
    def stop(step: int, steps: int, words: str) -> None:
        if step == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        finetune_connector(delta, data, out, settings=fast(), progress=stop, **options)


def test_settings_that_teach_nothing_may_change_when_it_goes_on(delta: Path, place: Path) -> None:
    assert set(CHANGES) == FREE
    data = write(place / "free", [row(n) for n in range(6)])
    stopped(delta, data, place / "free-out")
    done = finetune_connector(
        delta, data, place / "free-out", settings=fast(**CHANGES), resume=True
    )
    assert done.result.resumed_at and done.record.steps == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"max_length": 99}, "max_length was 2048, is 99"),
        ({"prompt": "v1"}, "prompt was auto, is v1"),
        ({"images": "other"}, "images was .*, is .*other"),
        ({"split": "test"}, "split was train, is test"),
        ({"data": "other"}, "data differs"),
    ],
)
def test_everything_else_is_another_training(
    change: dict[str, Any], said: str, delta: Path, place: Path
) -> None:
    data = write(place / "same", [row(n) for n in range(6)])
    other = write(place / "other", [row(n) for n in range(1, 7)])
    if not (place / "same-out.training").exists():
        stopped(delta, data, place / "same-out")
    options: dict[str, Any] = {"settings": fast(), "resume": True}
    if "images" in change:
        options["images"] = other.parent
    elif "split" in change:
        options |= change
    elif "data" in change:
        # The same pictures, so that nothing else differs.
        options["images"] = data.parent
        data = other
    else:
        options["settings"] = fast(**change)
    with pytest.raises(RequestError, match=f"belongs to another training: {said}"):
        finetune_connector(delta, data, place / "same-out", **options)


def test_the_folder_of_pictures_is_the_same_however_it_is_written(
    delta: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(place / "named", [row(n) for n in range(6)])
    stopped(delta, data, place / "named-out")
    monkeypatch.chdir(place)
    done = finetune_connector(
        delta, data, place / "named-out", settings=fast(), resume=True, images="named/../named"
    )
    assert done.result.resumed_at


def text_row(number: int) -> Any:
    return row(number, question="Which?", image=None)


def blind_rows(count: int) -> list[Any]:
    """Rows of text, and one with a picture, which comes last in the order of the first epoch."""
    last = list(EpochOrder(count, seed=0))[-1]
    return [row(n) if n == last else text_row(n) for n in range(count)]


@pytest.fixture(scope="module")
def blind(delta: Path, place: Path) -> Finetuned:
    """A training of the language model too that ends before the one row with a picture."""
    data = write(place / "text", blind_rows(8))
    settings = fast(train="full", lr=1e-3, weight_decay=0.1)
    return finetune_connector(delta, data, place / "blind", settings=settings)


def test_a_group_without_a_gradient_is_not_published_as_trained(blind: Finetuned) -> None:
    groups = blind.result.trained.groups
    assert set(blind.result.untouched) == {*groups["connector"], *groups["projector"]}
    plan = read_plan(blind.output)
    (record,) = plan.training
    assert "dense_connector.weight" in record.untouched
    assert len(record.untouched) == len(blind.result.untouched) == 5
    assert not set(record.untouched) & set(record.trained) and record.trained
    counts = blind.result.trained.counts
    assert record.trained_parameters == counts["language"]
    names = {item.name for item in plan.delta}
    assert names == {*record.trained, "dense_connector.weight"}
    assert verify_checkpoint(blind.output).passed


def test_a_group_that_one_row_reaches_is_trained(delta: Path, place: Path) -> None:
    data = write(place / "one", [*(text_row(n) for n in range(5)), row(5)])
    done = finetune_connector(delta, data, place / "one-out", settings=fast(train="full", lr=1e-3))
    assert done.result.untouched == () and done.record.untouched == []


def test_what_never_had_a_gradient_is_known_after_a_stop(delta: Path, place: Path) -> None:
    data, out = write(place / "text", blind_rows(8)), place / "blind-again"
    settings = fast(train="full", lr=1e-3)

    def stop(step: int, steps: int, words: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_connector(delta, data, out, settings=settings, progress=stop)
    done = finetune_connector(delta, data, out, settings=settings, resume=True)
    assert len(done.result.untouched) == 5 and len(done.record.untouched) == 5


def test_a_training_that_reaches_nothing_writes_nothing(delta: Path, place: Path) -> None:
    data = write(place / "text", blind_rows(8))
    with pytest.raises(TrainingError, match="no parameter ever had a gradient"):
        finetune_connector(delta, data, place / "nothing", settings=fast())
    assert not (place / "nothing").exists()
