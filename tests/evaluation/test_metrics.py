from __future__ import annotations

import pytest

from dcsurgery.data.conversations import Row
from dcsurgery.evaluation.metrics import chosen, score, vqa_normalised, with_options


def row(*answers: str, options: tuple[str, ...] = ()) -> Row:
    return Row("1", (), answers=answers, options=options)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("A red ball.", "a red ball", 1),
        (" RED\n ball ", "Red ball!", 1),
        ("\uff12", "2", 1),
        ("red", "a red ball", 0),
        ("don't", "dont", 0),
        ("3.5", "35", 0),
        ("", "yes", 0),
    ],
)
def test_exact_ignores_case_blanks_and_outer_punctuation(
    answer: str, reference: str, expected: int
) -> None:
    assert score("exact", answer, row("something else", reference)) == expected


@pytest.mark.parametrize(("humans", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_vqa_accuracy_is_the_challenges_for_ten_humans(humans: int, accuracy: float) -> None:
    """The values that the challenge's own evaluation gives: 0, 30, 60, 90 and 100 %."""
    said = ("yes",) * humans + ("no",) * (10 - humans)
    assert score("vqa", "Yes.", row(*said)) == pytest.approx(accuracy)


def test_vqa_with_one_reference_is_equality() -> None:
    assert score("vqa", "the two", row("2")) == 1
    assert score("vqa", "three", row("2")) == 0


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("A Dog", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("It is red.", "it is red"),
        ("the\nend", "end"),
        ("t-shirt", "t shirt"),
    ],
)
def test_vqa_normalisation(text: str, normalised: str) -> None:
    assert vqa_normalised(text) == normalised


OPTIONS = ("red ball", "blue cube", "a ball")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("(b)", 1),
        ("B.", 1),
        ("B. blue cube", 1),
        ("C) because it is", 2),
        ("The answer is B", 1),
        ("Blue cube.", 1),
        ("It must be the blue cube", 1),
        ("A ball", 2),
        ("A dog", None),
        ("red ball or blue cube", None),
        ("E", None),
        ("cubes of blue cubes", None),
        ("", None),
    ],
)
def test_choices_are_read_from_letters_or_texts(text: str, index: int | None) -> None:
    assert chosen(text, OPTIONS) == index


@pytest.mark.parametrize("reference", ["B", "blue cube", "1"])
def test_a_reference_may_be_letter_text_or_number(reference: str) -> None:
    question = row(reference, options=OPTIONS)
    assert score("choice", "b", question) == 1
    assert score("choice", "A", question) == 0
    assert score("choice", "no idea", question) == 0


def test_letters_are_compared_where_the_row_lists_no_options() -> None:
    assert score("choice", "D. It flies", row("D")) == 1
    assert score("choice", "C", row("D")) == 0


def test_options_are_listed_unless_the_question_shows_them() -> None:
    assert with_options("Which?", ("x", "y")) == (
        "Which?\nA. x\nB. y\nAnswer with the option's letter from the given choices directly."
    )
    shown = "Which?\nA. red\nB. blue"
    assert with_options(shown, ("red", "blue")) == shown
    assert with_options("Which?", ()) == "Which?"
