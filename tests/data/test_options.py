"""Multiple-choice rows: the question shows its options, the answer is the right one's letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dcsurgery.data.batches import StreamedDataset, TrainingDataset
from dcsurgery.data.conversations import Row, for_training
from dcsurgery.data.options import listed
from dcsurgery.data.picks import label, pick
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import Prompter
from dcsurgery.data.rows import Rows, read_rows
from dcsurgery.data.samples import dry_run_samples
from dcsurgery.evaluation.questions import question_turns
from dcsurgery.tiny import write_tiny_llava
from tests.training.pictures import save_picture

SAY = "Answer with the option's letter from the given choices directly."
SHOWN = f"Which?\nA. cat\nB. dog\n{SAY}"


def rows_of(folder: Path, *rows: dict[str, Any]) -> list[Row]:
    save_picture(folder / "photo.png", seed=0)
    read = read_rows(write_rows(folder, *rows))
    return [read[index] for index in range(len(read))]


def write_rows(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.json"
    asked = {"question": "Which?", "options": ["cat", "dog"]}
    path.write_text(json.dumps([{**asked, **row} for row in rows]))
    return path


@pytest.mark.parametrize("answer", [1, "B", "(B)", "b", "dog", "Dog.", "B. dog", "1"])
def test_finetune_and_eval_see_one_question(tmp_path: Path, answer: Any) -> None:
    extra = {"answer": 0, "image": "photo.png"}
    row = rows_of(tmp_path, {"answer": answer, "image": "photo.png"}, extra, {"answer": "0"})[0]
    trained, asked = for_training(row), question_turns(row)
    assert trained.turns[0].parts == asked[-1].parts == (None, SHOWN)
    assert trained.turns[1].parts == ("B",)
    assert row.right == (1,)


@pytest.mark.parametrize(
    ("question", "parts"),
    [
        ("<image>\nWhich?", (None, f"\n{SHOWN}")),
        ("Look at this <image> and say which", ("Look at this ", None, " and say which")),
        ("Which?\n<image>", (SHOWN, None)),
        ("<image>Which?\n(A) cat (B) dog", (None, "Which?\n(A) cat (B) dog")),
        (f"<image>{SHOWN}", (None, SHOWN)),
        (
            "<image>Which?\na) cat\nb) dog\nSay a letter.",
            (None, "Which?\na) cat\nb) dog\nSay a letter."),
        ),
    ],
)
def test_pictures_keep_their_places_and_shown_options_are_not_repeated(
    tmp_path: Path, question: str, parts: tuple[str | None, ...]
) -> None:
    (row,) = rows_of(tmp_path, {"question": question, "answer": "dog", "image": "photo.png"})
    found = row.turns[0].parts
    assert [part is None for part in found] == [part is None for part in parts]
    assert (found[-1] or "").startswith((parts[-1] or "").rstrip())
    text = row.turns[0].text
    assert text.count("cat") == 1 and text.count("dog") == 1


def test_shown_options_may_end_in_signs(tmp_path: Path) -> None:
    asked = {"question": "Which?\nA. C\nB. C++", "options": ["C", "C++"], "answer": "C++"}
    (row,) = rows_of(tmp_path, asked)
    assert row.turns[0].text == asked["question"] and row.right == (1,)


def test_options_are_listed_where_the_question_only_names_them(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"question": "Is it a cat or a dog?", "answer": "dog"})
    assert row.turns[0].text == f"Is it a cat or a dog?\nA. cat\nB. dog\n{SAY}"


def test_a_conversation_with_options_is_the_same_row(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "dog"}]
    why = [talk[0], {"from": "gpt", "value": "It barks, so the answer is B."}]
    plain, explained = rows_of(
        tmp_path,
        {"conversations": talk, "image": "photo.png"},
        {"conversations": why, "image": "photo.png"},
    )
    assert plain.turns[0].text == explained.turns[0].text == f"\n{SHOWN}"
    assert plain.turns[1].text == "B"
    assert explained.turns[1].text == "It barks, so the answer is B."
    assert explained.right == (1,)


def test_what_finetune_shows_is_what_it_trains(tmp_path: Path) -> None:
    """Whole way: the tokens that carry loss are the letter's, behind the listed options."""
    rows_of(tmp_path, {"answer": 1, "image": "photo.png"}, {"answer": 0, "image": "photo.png"})
    model = write_tiny_llava(tmp_path / "model")
    prompter = Prompter(load_processor(model))
    dataset = TrainingDataset(read_rows(tmp_path / "rows.json"), prompter)
    samples = dry_run_samples(dataset)
    for sample, letter in zip(samples, "BA", strict=True):
        (trained,) = [text for text, supervised in sample.pieces if supervised]
        assert trained.split()[0].startswith(letter) and "1" not in trained and "0" not in trained
        asked = "".join(text for text, supervised in sample.pieces if not supervised)
        assert "A. cat" in asked and "B. dog" in asked
    row = dataset.rows[0]
    prompt = prompter.prompt(question_turns(row), [row.images[0].open()])["input_ids"][0]
    whole = dataset.encode(0).values["input_ids"]
    assert torch.equal(whole[: len(prompt)], prompt)


def test_a_row_that_cannot_be_decided_is_named_and_skipped(tmp_path: Path) -> None:
    save_picture(tmp_path / "photo.png", seed=0)
    seen = {"image": "photo.png"}
    data = write_rows(tmp_path, {"answer": "horse", **seen}, *[{"answer": "dog", **seen}] * 99)
    prompter = Prompter(load_processor(write_tiny_llava(tmp_path / "model")))
    dataset = TrainingDataset(read_rows(data), prompter)
    assert [(bad.id, bad.reason) for bad in dataset.bad] == [
        ("row 1", "its answer 'horse' names none of its options, or several")
    ]


class Stream:
    """Rows without a length; how many were read is counted."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


def test_a_stream_is_read_as_its_first_rows_are(tmp_path: Path) -> None:
    numbers, words = ["2", "4", "0"], ["cat", "dog", "cow"]
    save_picture(tmp_path / "photo.png", seed=0)
    row = {"question": "?", "image": "photo.png"}
    items = [{**row, "options": words, "answer": "0"}] * 1000
    items += [{**row, "options": numbers, "answer": "2"}]
    rows = Rows("stream", Stream(items), root=tmp_path)
    assert rows.streamed
    *_, last = rows
    assert isinstance(last, Row) and last.right == (2,)
    prompter = Prompter(load_processor(write_tiny_llava(tmp_path / "model")))
    assert len(list(StreamedDataset(rows, prompter))) == 1001


def test_a_saved_data_set_is_read_alike(tmp_path: Path) -> None:
    import datasets

    found = {"question": ["?", "?"], "options": [["a", "b"]] * 2, "answer": [1, 0]}
    datasets.Dataset.from_dict(found).to_parquet(tmp_path / "rows.parquet")
    rows = read_rows(tmp_path / "rows.parquet")
    assert [rows[0].right, rows[1].right] == [(1,), (0,)]


def test_rows_without_options_are_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"question": "?", "answer": 3, "options": []}, {"question": "?"}]))
    row = read_rows(path)[0]
    assert (row.answers, row.options, row.right) == (("3",), (), ())
    assert "choices" not in vars(read_rows(path))


def test_labels_go_on_after_z() -> None:
    assert [label(n) for n in (0, 25, 26, 27, 51, 52)] == ["A", "Z", "AA", "AB", "AZ", "BA"]
    many = [f"thing {n}" for n in range(60)]
    for index in range(60):
        assert pick(label(index), many) == pick(f"({label(index)})", many) == (index,)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Which?\nA. cat\nB. dog\nSay a letter.", ["cat", "dog"]),
        ("In figure A. Which? A. cat B. dog", ["cat", "dog"]),
        ("(a)cat (b)dog", ["cat", "dog"]),
        ("A: cat; B: dog;", ["cat", "dog"]),
        ("A dog and a cat. B", []),
        ("Is it A. or nothing?", []),
    ],
)
def test_options_in_a_text(text: str, found: list[str]) -> None:
    assert listed(text) == found


@pytest.mark.parametrize(
    ("text", "options", "picked"),
    [
        ("A", ["C", "A", "B", "D"], (0,)),
        ("E", ["E", "F"], (0,)),
        ("1.5 m", ["1", "1.5 m", "5"], (1,)),
        ("There are 10", ["0", "1"], ()),
        ("5", ["-5", "5"], (1,)),
        ("C++", ["Java", "C++", "C", "Go"], (1,)),
        ("A. Lincoln", ["B. Obama", "A. Lincoln"], (1,)),
        ("\u662f\u7ea2\u8272\u7684", ["\u7ea2\u8272", "\u84dd\u8272"], (0,)),
        ("No, there is not", ["yes", "no"], (1,)),
        ("+", ["+", "-"], (0,)),
        ("I", list("abcdefghijk"), (8,)),
        ("The answer is C because I computed it", list("abcdefghij"), (2,)),
        ("It shows a cat", ["C", "A", "B", "D"], ()),
        ("the answer is 94106 or 94107", ["94107", "94106"], ()),
        ("a ball of red", ["a ball", "ball"], (0,)),
        ("D. It flies", [], (3,)),
    ],
)
def test_odd_options(text: str, options: list[str], picked: tuple[int, ...]) -> None:
    assert pick(text, options) == picked
