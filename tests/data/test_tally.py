"""Percentages of bad rows, the sample that speaks for all, and the hint that helps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dcsurgery.data.conversations import BadRow
from dcsurgery.data.tally import BadRows, Losses, Tally, load_tally, save_tally
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.runner import EvalSettings
from dcsurgery.recipes.schema import Eval
from dcsurgery.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("given", "found"),
    [(1, 1), ("1", 1), ("1%", 1), (0.5, 0.5), ("0.5%", 0.5), (" 2 % ", 2), (0, 0), ("100%", 100)],
)
def test_bad_rows_are_given_in_percent_everywhere(given: Any, found: float) -> None:
    assert TrainingSettings(max_bad=given).max_bad == BadRows(1, given).max_bad == found
    assert Eval(name="e", data="d", max_bad=given).max_bad == found
    EvalSettings(max_bad=given).check()


@pytest.mark.parametrize(
    "given", [-1, "101%", "1%%", "", "two", "1,5%", math.nan, math.inf, "nan", True, None, [1]]
)
def test_what_is_no_percentage_is_refused(given: Any) -> None:
    with pytest.raises(RequestError, match=r"max_bad .*a percentage from 0 to 100"):
        TrainingSettings(max_bad=given)
    for refuse in (lambda: BadRows(10, given), EvalSettings(max_bad=given).check):
        with pytest.raises(RequestError, match=r"--max-bad .* is no share of rows"):
            refuse()
    with pytest.raises(ValidationError, match="a percentage from 0 to 100"):
        Eval(name="e", data="d", max_bad=given)


@pytest.mark.parametrize(("bad", "total"), [(1, 100), (7, 1000), (29, 2900), (1, 3)])
def test_exactly_the_percentage_is_allowed(bad: int, total: int) -> None:
    rows = BadRows(total, 100 * bad / total)
    for index in range(bad):
        rows.add(index, BadRow(str(index), "broken"))
    rows.check()
    rows.add(bad, BadRow("more", "broken"))
    with pytest.raises(RequestError, match=f"{bad + 1} of {total} rows"):
        rows.check()


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["", "", "--images"], "repair these rows, or allow more with --max-bad 30%"),
        (["--images", "--images", ""], "check --images"),
        (["--max-length 90", "--max-length 3000", "--images"], "--max-length 3000"),
    ],
)
def test_the_hint_names_the_option_that_helps_most_rows(options: list[str], hint: str) -> None:
    rows = BadRows(10)
    for index, option in enumerate(options):
        rows.add(index, BadRow(str(index), "why", option))
    with pytest.raises(RequestError) as caught:
        rows.check()
    assert hint in caught.value.hint


@pytest.mark.parametrize(("bad", "is_an_error"), [(0, False), (4, False), (5, True), (64, True)])
def test_a_sample_speaks_for_all_rows(bad: int, is_an_error: bool) -> None:
    """Where 1 % are bad, 64 rows have four bad ones 4 times in 1,000, five 4 times in 10,000."""
    rows = BadRows(100_000, 1)
    found = [BadRow(str(index), "broken") for index in range(bad)]
    if is_an_error:
        with pytest.raises(RequestError, match=f"{bad} of 64 rows that were measured"):
            rows.check_sample(found, 64)
    else:
        rows.check_sample(found, 64)


def test_what_was_counted_is_counted_once_and_survives_a_checkpoint(tmp_path: Path) -> None:
    bad, tally = BadRows(10, 100), Tally({1, 2}, {2}, {"system turn": {1}})
    bad.add(4, BadRow("four", "broken", "--images"))
    save_tally(tmp_path / "rows-0.json", bad, tally)
    others, again = BadRows(10, 100), Tally({2, 3}, set(), {"system turn": {1, 5}})
    for _ in range(2):
        load_tally(tmp_path / "rows-0.json", others, again)
    assert others.items() == bad.items()
    assert again.counts() == Losses(3, 1, {"system turn": 2})
    assert again.counts().lines(2048, of=" of 64") == [
        "3 rows of 64 cut to --max-length 2048, 1 of them inside an answer",
        "2 rows of 64: the system turn is left out of the prompt, or changed",
    ]
