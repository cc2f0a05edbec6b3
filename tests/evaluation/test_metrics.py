from __future__ import annotations

import pytest

from dcsurgery.data.conversations import Row
from dcsurgery.evaluation.metrics import judge, vqa_normalised


def row(*answers: str) -> Row:
    return Row("1", (), answers=answers)


def score(metric: str, answer: str, row: Row) -> float:
    return judge(metric, answer, row).score


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
