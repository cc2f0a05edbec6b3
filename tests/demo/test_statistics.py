"""Intervals are Student's t over towers, and the table says when nothing moves."""

from __future__ import annotations

from math import isnan

import pytest

from dcsurgery.demo.comparison import compare, quantile, share, shares, summarise, within
from dcsurgery.demo.outcome import Outcome, read_outcome
from dcsurgery.demo.questions import KINDS
from dcsurgery.demo.tables import (
    interval,
    mean_curve,
    start_lines,
    text_table,
    verdict,
)
from tests.demo.full.run import markdown_table

ARMS = ("base", "control", "repeated", "retrofit")


def outcome(tower: str, arm: str, right: dict[str, list[bool]]) -> Outcome:
    kinds = [kind for kind, answers in right.items() for _ in answers]
    flat = [answer for answers in right.values() for answer in answers]
    return Outcome(
        tower=tower, arm=arm, seed=0, steps=2, data_sha256="x", starts_as_base=True,
        curve={0: 0.5, 1: 0.4, 2: 0.6}, answers=[0] * len(flat), right=flat, kinds=kinds,
        blocks=["0..3", "4..7"], used=[0.1, 0.2], seconds=1.0,
    )  # fmt: skip


def world(gains: list[int]) -> list[Outcome]:
    """Towers in which the retrofit answers `gain` more of ten colour questions than the control."""
    found = []
    for tower, gain in enumerate(gains):
        for arm in ARMS:
            right = {kind: [True] * 5 + [False] * 5 for kind in KINDS}
            extra = gain if arm == "retrofit" else 0
            right["background"] = [True] * (5 + extra) + [False] * (5 - extra)
            found.append(outcome(f"t{tower}", arm, right))
    return found


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (7, 2.365), (30, 2.042), (120, 1.980)],
)
def test_quantiles_are_those_of_the_printed_tables(freedom: int, expected: float) -> None:
    assert quantile(0.95, freedom) == pytest.approx(expected, abs=6e-4)
    assert within(expected, freedom) == pytest.approx(0.95, abs=1e-4)


def test_a_summary_is_the_textbook_one() -> None:
    # Per-tower gains of +1.31, +1.61, +3.45: mean 2.12, SE 0.67, t(2) = 3.2, p = .087.
    found = summarise([1.31, 1.61, 3.45])
    assert found.mean == pytest.approx(2.123, abs=1e-3)
    assert found.p_value == pytest.approx(0.087, abs=2e-3)
    assert (found.high - found.low) / 2 == pytest.approx(4.303 * 0.669, abs=5e-3)
    assert not found.moved


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0], [-0.1, -0.1, -0.1], [0.0, 0.0]])
def test_one_tower_or_equal_ones_have_no_interval(values: list[float]) -> None:
    found = summarise(values)
    assert isnan(found.low) and not found.moved and "no interval" in interval(found)


def test_towers_are_paired_by_name_in_any_order() -> None:
    outcomes = world([1, 2, 3])
    assert shares(outcomes, "retrofit", "background").tolist() == [0.6, 0.7, 0.8]
    shuffled = [*reversed(outcomes)]
    assert compare(shuffled, "retrofit", "control", "background").towers == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_kinds_of_a_group_weigh_alike() -> None:
    right = {kind: [True] for kind in KINDS} | {"background": [False] * 9 + [True]}
    assert share(outcome("t", "base", right), "all") == pytest.approx(0.91)


def test_the_text_says_what_moved_and_what_did_not() -> None:
    text = " ".join(verdict(world([2, 3, 2, 3])))
    assert text.startswith("Better: background. Not shown to move: colour of a digit,")
    assert "above zero in 4 of 4 towers" in text
    still = " ".join(verdict(world([0, 0, 0])))
    assert "Better" not in still and "Worse" not in still and "Not shown to move" in still
    assert "Worse: background." in " ".join(verdict(world([-2, -3, -2])))


def test_tables_fit_80_columns_and_have_a_row_for_every_kind() -> None:
    lines = text_table(world([2, 3, 2]))
    assert max(map(len, lines)) <= 80
    marked = markdown_table(world([2, 3, 2]))
    assert {row.split("|")[1].strip() for row in marked[2:]} >= set(KINDS)
    assert len({row.count("|") for row in marked}) == 1
    (row,) = (line for line in lines if "background" in line)
    assert "50.0     50.0     50.0     73.3 +23.3 [" in row and row.endswith("*")


def test_the_lowest_point_is_that_of_the_mean_over_towers() -> None:
    outcomes = world([1, 2])
    lower = {"curve": {0: 0.3, 1: 0.7, 2: 0.4}}
    outcomes[1], outcomes[5] = (outcomes[i].model_copy(update=lower) for i in (1, 5))
    assert mean_curve(outcomes, "control") == pytest.approx({0: -0.2, 1: 0.2, 2: -0.1})
    said = start_lines(outcomes)
    assert said[1].startswith("control: -20.0 points at step 0,")
    assert said[2].startswith("repeated: -10.0 points at step 1,")


def test_an_outcome_is_read_as_it_was_written(tmp_path) -> None:
    before = world([1])[0]
    assert read_outcome(tmp_path) is None
    before.write(tmp_path)
    assert read_outcome(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
