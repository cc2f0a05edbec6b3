from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dcsurgery.data.batches import (
    Collator,
    StreamedDataset,
    TrainingDataset,
)
from dcsurgery.data.conversations import Row
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import IGNORED, Prompter
from dcsurgery.data.rows import Rows, read_rows
from dcsurgery.data.samples import dry_run_samples
from dcsurgery.errors import RequestError
from dcsurgery.loading.load import load_model
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.llava_next import write_tiny_llava_next
from tests.closeness import assert_near
from tests.tiny.idefics3 import write_tiny_idefics3
from tests.tiny.internvl import write_tiny_internvl
from tests.tiny.mistral3 import write_tiny_mistral3
from tests.tiny.mllama import write_tiny_mllama
from tests.tiny.qwen2_vl import write_tiny_qwen2_vl
from tests.training.pictures import ONE, TEXT, TWO, save_picture

WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": write_tiny_llava,
    "llava_next": write_tiny_llava_next,
    "idefics3": write_tiny_idefics3,
    "internvl": write_tiny_internvl,
    "mistral3": write_tiny_mistral3,
    "mllama": write_tiny_mllama,
    "qwen2_vl": write_tiny_qwen2_vl,
}
MIXED = (ONE, TWO, TEXT)


@pytest.fixture(scope="module", params=WRITERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("batches") / request.param)


def test_a_mixed_batch_is_what_the_familys_own_processor_makes(family: Path) -> None:
    processor = load_processor(family)
    prompts = Prompter(processor)
    encoded = [prompts.encode(row).values for row in MIXED]
    for side in ("left", "right"):
        batch = Collator(processor, side=side)(encoded)
        wanted = processor(
            text=[processor.tokenizer.decode(_short(row, prompts)) for row in MIXED],
            images=[[image.open() for image in row.images] for row in MIXED],
            padding=True,
            padding_side=side,
            return_tensors="pt",
        )
        for name in wanted:
            found, expected = batch[name], wanted[name]
            if name == "cross_attention_mask":  # the family's own marks padding as well
                real = batch["attention_mask"][:, :, None, None]
                found, expected = found * real, expected * real
            assert torch.equal(found, expected), name
        marked = batch["labels"] != IGNORED
        assert torch.equal(batch["labels"][marked], batch["input_ids"][marked])
        assert [int(row.sum()) for row in marked] == [
            int((row["labels"] != IGNORED).sum()) for row in encoded
        ]


def _short(row: Row, prompts: Prompter) -> list[int]:
    """Return the row's prompt as ids before pictures are written out."""
    from dcsurgery.data.templates import find_writer

    text = find_writer(prompts.processor)(row.turns, False).text
    ids: list[int] = prompts.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_a_row_computes_the_same_alone_and_in_a_mixed_batch(family: Path) -> None:
    """But for Mllama's text row: its layers attend to the empty picture that stands there."""
    model = load_model(family, dtype=torch.float32)
    prompts = Prompter(load_processor(family))
    collator = Collator(prompts.processor)
    rows = MIXED[:2] if model.config.model_type == "mllama" else MIXED
    encoded = [prompts.encode(row).values for row in rows]
    together = _answers(model, collator(encoded))
    for row, found in zip(encoded, together, strict=True):
        alone = _answers(model, collator([row]))[0]
        assert_near(found, alone)


def _answers(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Logits of every row where labels are."""
    known = inspect.signature(model.forward).parameters
    values = {name: value for name, value in batch.items() if name in known}
    labels = values.pop("labels")
    with torch.no_grad():
        logits = model(**values).logits
    return [row[marks != IGNORED] for row, marks in zip(logits, labels, strict=True)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompter:
    folder = tmp_path_factory.mktemp("dataset") / "llava"
    return Prompter(load_processor(write_tiny_llava(folder)))


def row(number: int, **changes: Any) -> dict[str, Any]:
    said = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": f"It is {number}."},
    ]
    return {"id": f"r{number}", "image": "a.png", "conversations": said, **changes}


def write(folder: Path, raw: list[Any]) -> Rows:
    save_picture(folder / "a.png")
    (folder / "d.json").write_text(json.dumps(raw))
    return read_rows(folder / "d.json")


def answers(dataset: Any, prompts: Prompter) -> list[str]:
    found = []
    for values in dataset:
        labels = values["labels"]
        found.append(prompts.answer(labels[labels != IGNORED]))
    return found


def test_bad_rows_are_named_and_skipped(prompts: Prompter, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(save_picture(tmp_path / "b.png").read_bytes()[:-300])
    raw = [row(0), row(1, image="gone.png"), 7, row(3, image="cut.png"), row(4)]
    dataset = TrainingDataset(write(tmp_path, raw), prompts, max_bad=0.6)
    assert [(bad.id, bad.reason.split(":")[0]) for bad in dataset.bad] == [
        ("r1", "image gone.png does not exist"),
        ("row 3", "it is a int, not an object"),
        ("r3", "image cut.png cannot be read"),
    ]
    assert len(dataset) == len(dataset.lengths) == 2
    assert answers([dataset[i] for i in range(2)], prompts) == ["It is 0.", "It is 4."]


def test_too_many_bad_rows_are_an_error_that_names_them(prompts: Prompter, tmp_path: Path) -> None:
    rows = write(tmp_path, [row(0), *[row(n, image="gone.png") for n in range(1, 6)]])
    with pytest.raises(RequestError, match=r"5 of 6 rows .*r1: image gone.png .*; and 2 more"):
        TrainingDataset(rows, prompts)


def test_a_row_that_fails_late_is_counted_and_replaced(prompts: Prompter, tmp_path: Path) -> None:
    long = [{"from": "human", "value": "x" * 300}, {"from": "gpt", "value": "no"}]
    raw = [row(0), row(1, conversations=long, image=None), row(2)]
    log = tmp_path / "bad.jsonl"
    dataset = TrainingDataset(write(tmp_path, raw), prompts, max_bad=0.5, max_length=200)
    assert len(dataset) == 3 and len(dataset.bad) == 0
    found = answers([dataset[i] for i in (0, 1, 2, 1)], prompts)
    assert found == ["It is 0.", "It is 2.", "It is 2.", "It is 2."]
    dataset.collect_bad(log)
    (noted,) = map(json.loads, log.read_text().splitlines())
    assert noted["id"] == "r1" and "no answer starts in the first 200" in noted["reason"]
    assert [dataset.name_of(i) for i in range(3)] == ["r0", "r2", "r2"]
    strict = TrainingDataset(write(tmp_path, raw), prompts, max_bad=0.1, max_length=200)
    with pytest.raises(RequestError, match=r"1 of 3 rows .* 10 %: r1"):
        strict[1]


def test_truncated_rows_are_counted(prompts: Prompter, tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "y" * 300}]
    rows = write(tmp_path, [row(0), row(1, conversations=said, image=None)])
    dataset = TrainingDataset(rows, prompts, max_length=100)
    assert [len(dataset[i]["input_ids"]) <= 100 for i in (0, 1)] == [True, True]
    assert dataset.truncated == {1}


def test_a_stream_skips_bad_rows_until_they_are_too_many(prompts: Prompter, tmp_path: Path) -> None:
    raw = [row(n, image="gone.png" if n == 1 else "a.png") for n in range(4)]
    save_picture(tmp_path / "a.png")
    rows = Rows("stream", iter(raw), root=tmp_path)
    dataset = StreamedDataset(rows, prompts, max_bad=0.3)
    assert answers(dataset, prompts) == ["It is 0.", "It is 2.", "It is 3."]
    assert [bad.id for bad in dataset.bad] == ["r1"] and dataset.bad.total == 4
    strict = StreamedDataset(Rows("stream", iter(raw), root=tmp_path), prompts)
    with pytest.raises(RequestError, match="1 of 4 rows cannot be used"):
        list(strict)


def test_a_dry_run_shows_which_text_carries_loss(prompts: Prompter, tmp_path: Path) -> None:
    dataset = TrainingDataset(write(tmp_path, [row(n) for n in range(5)]), prompts)
    samples = dry_run_samples(dataset)
    assert [sample.id for sample in samples] == ["r0", "r1", "r2"]
    assert samples[1].pieces == (
        ("USER: <image>(x16) What? ASSISTANT:", False),
        (" It is 1.</s>", True),
    )
    values = dataset[1]
    assert samples[1].tokens == len(values["input_ids"])
    assert samples[1].supervised == int((values["labels"] != IGNORED).sum())


def test_a_stream_is_shown_and_must_have_pictures(prompts: Prompter, tmp_path: Path) -> None:
    save_picture(tmp_path / "x.png")
    raw: list[Any] = [{"question": f"{n}?", "answer": "a", "img": "x.png"} for n in range(5)]
    raw[1] = {"id": "odd", "question": "?"}
    raw.append({"caption": "a ball", "image": "x.png"})
    dataset = StreamedDataset(Rows("stream", _Again(raw), root=tmp_path), prompts, max_bad=0.5)
    samples = dry_run_samples(dataset)
    assert [(each.layout, each.question, each.answer, each.images) for each in samples][2:] == [
        ("question and answer", "<image>3?", "a", 1),
        ("caption", "<image>Describe the image briefly.", "a ball", 1),
    ]
    assert len(list(dataset)) == 5
    assert len(list(dataset)) == 5  # a second epoch counts nothing twice
    assert (dataset.census.with_pictures, dataset.census.without_pictures) == (5, 0)
    text = [{"question": f"{n}?", "answer": "a"} for n in range(3)]
    with pytest.raises(RequestError, match="none of the 3 rows of stream has a picture"):
        list(StreamedDataset(Rows("stream", _Again(text), root=tmp_path), prompts))


class _Again:
    """Rows that can be iterated again, without a length."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)
