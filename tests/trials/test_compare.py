"""Gains, intervals and verdicts on answers that are made up: the oracle is arithmetic by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dcsurgery.data.conversations import Row
from dcsurgery.data.pictures import ImageSource
from dcsurgery.evaluation.answers import Answer
from dcsurgery.evaluation.trial_report import Gain, Versus
from dcsurgery.trials.compare import Results, fallen
from dcsurgery.trials.differences import count_differences
from dcsurgery.trials.outcome import tell_untyped
from dcsurgery.trials.verdict import decide
from tests.training.pictures import answer, user

Scores = Sequence[Sequence[float]]
KINDS = ("colour", "shape")


def rows(count: int, pictures: int | None = None) -> dict[int, Row]:
    """Rows of two types, some of which may share pictures."""
    return {
        at: Row(
            f"row-{at}",
            (user(None, "which?"), answer("x")),
            (ImageSource(f"{at % (pictures or count)}", data=b"%d" % (at % (pictures or count))),),
            kind=KINDS[at % 2],
            answers=("x",),
        )
        for at in range(count)
    }


def results(
    scores: Mapping[str, Scores],
    *,
    losses: Mapping[str, Scores] | None = None,
    tokens: Sequence[int] = (),
    pictures: int | None = None,
) -> Results:
    """Results of arms: [seeds][rows] of exact, and of losses where they are another thing."""
    count = len(next(iter(scores.values()))[0])
    weights = tokens or [1] * count

    def of(found: Scores, heavy: bool) -> list[dict[int, Answer]]:
        return [
            {
                at: Answer(0, at, f"row-{at}", value, f"{value}", weights[at] if heavy else 1)
                for at, value in enumerate(seed)
            }
            for seed in found
        ]

    answers = {
        arm: {"exact": of(found, False), "loss": of((losses or scores)[arm], True)}
        for arm, found in scores.items()
    }
    return Results(rows(count, pictures), answers, "exact")


def shares(rate: float, count: int = 400, seeds: int = 2, seed: int = 0) -> list[list[float]]:
    draw = np.random.default_rng(seed)
    return (draw.random((seeds, count)) < rate).astype(float).tolist()


def test_scores_are_averaged_over_seeds_and_each_seed_is_told() -> None:
    found = results({"control": [[0, 0, 1, 1], [0, 1, 1, 1]], "dci": [[1, 1, 1, 1], [1, 0, 1, 0]]})
    versus = found.versus("dci", "control")
    assert versus.gain.mean == pytest.approx((0.5 + -0.25) / 2)
    assert versus.gain.seeds == pytest.approx([0.5, -0.25])
    assert versus.gain.rows == 4 and not versus.beats
    assert versus.by_type["colour"].mean == pytest.approx((0.5 + 0.5) / 2)
    assert versus.by_type["shape"].mean == pytest.approx((0.5 - 1) / 2)


def test_a_loss_that_falls_is_a_gain_and_long_answers_count_more() -> None:
    losses = {"control": [[2.0, 1.0]], "dci": [[1.0, 1.5]]}
    found = results({"control": [[0, 0]], "dci": [[0, 0]]}, losses=losses, tokens=[3, 1])
    gain = found.versus("dci", "control").loss
    assert gain.mean == pytest.approx((3 * 1.0 + 1 * -0.5) / 4)


def test_the_base_has_one_run_for_all_seeds() -> None:
    found = results({"base": [[0, 0]], "dci": [[1, 0], [1, 1]]})
    assert found.versus("dci", "base").gain.seeds == pytest.approx([0.5, 1.0])


def test_pictures_are_the_units() -> None:
    once = results({"control": shares(0.4), "dci": shares(0.6, seed=1)}).gain(
        "dci", "control", "exact"
    )
    often = {
        arm: [list(np.tile(seed, 4)) for seed in found]
        for arm, found in {"control": shares(0.4, 100), "dci": shares(0.6, 100, seed=1)}.items()
    }
    alike = results(often, pictures=100).gain("dci", "control", "exact")
    assert alike.high - alike.low == pytest.approx(2 * (once.high - once.low), rel=0.35)


def test_rows_that_an_arm_could_not_answer_are_left_out() -> None:
    found = results({"control": [[0, 0, 1]], "dci": [[1, 1, 1]]})
    del found.answers["dci"]["loss"][0][2]  # type: ignore[attr-defined]
    assert found.places == [0, 1]


def gain(low: float, high: float, p: float = 0.001) -> Gain:
    return Gain(mean=(low + high) / 2, low=low, high=high, p_value=p, rows=100, seeds=[low, high])


def test_with_many_types_one_that_falls_by_chance_is_doubtful_not_lost() -> None:
    still = {f"{number}": gain(-0.1, 0.1, 0.5) for number in range(9)}
    assert fallen({**still, "odd": gain(-0.2, -0.01, 0.03)}) == ([], ["odd"])
    assert fallen({**still, "odd": gain(-0.2, -0.1, 0.0002)}) == (["odd"], [])
    assert fallen({"odd": gain(-0.2, -0.01, 0.03)}) == (["odd"], [])
    # Rising types are tested as well, and do not hide the next one.
    assert fallen({"up": gain(0.1, 0.2, 0.0001), "odd": gain(-0.2, -0.1, 0.001)}) == (["odd"], [])


def versus(of: Gain, *, lost: Sequence[str] = (), loss: Gain | None = None) -> Versus:
    fine = of.low > 0 and min(of.seeds) > 0 and not lost
    values: dict[str, Any] = {"by_type": {"colour": of}, "lost": list(lost), "beats": fine}
    return Versus(arm="dci", against="?", gain=of, loss=loss or gain(-0.1, 0.1), **values)


UP, FLAT, DOWN = gain(0.1, 0.2), gain(-0.1, 0.1), gain(-0.2, -0.1)


@pytest.mark.parametrize(
    ("found", "decision", "told"),
    [
        ({"control": versus(UP)}, "worth it", "no question type loses"),
        ({"control": versus(UP), "repeated": versus(UP)}, "worth it", "over today's feature"),
        ({"control": versus(UP), "repeated": versus(FLAT)}, "not shown", "does as much"),
        ({"control": versus(UP), "repeated": versus(FLAT, loss=UP)}, "worth it", "loss alone"),
        ({"control": versus(FLAT)}, "not shown", "dci minus control +0.0 points"),
        ({"control": versus(FLAT, loss=UP)}, "not shown", "its loss does fall"),
        ({"control": versus(FLAT, loss=DOWN)}, "not shown", "its loss rises"),
        ({"control": versus(DOWN)}, "do not", "it loses"),
        ({"control": versus(UP, lost=["shape"])}, "do not", "it loses on shape"),
        ({"control": versus(UP), "base": versus(DOWN)}, "do not", "below the base"),
        ({"base": versus(UP)}, "no verdict", "needs the control"),
    ],
)
def test_the_verdict_follows_fixed_rules(
    found: dict[str, Versus], decision: str, told: str
) -> None:
    kind, sentence = decide("dci", found, "exact", 2)
    assert kind == decision and told in sentence and sentence.startswith(decision)


def test_seeds_that_do_not_agree_show_nothing() -> None:
    odd = UP.model_copy(update={"seeds": [0.3, -0.01]})
    kind, sentence = decide("dci", {"control": versus(odd)}, "exact", 2)
    assert kind == "not shown" and "the seeds do not agree" in sentence


@pytest.mark.parametrize("seed", range(4))
def test_made_up_answers_get_the_verdict_they_deserve(seed: int) -> None:
    better = results({"control": shares(0.5, seed=seed), "dci": shares(0.7, seed=seed + 90)})
    alike = results({"control": shares(0.5, seed=seed), "dci": shares(0.5, seed=seed + 90)})
    worse = results({"control": shares(0.5, seed=seed), "dci": shares(0.3, seed=seed + 90)})
    verdicts = [
        decide("dci", {"control": item.versus("dci", "control")}, "exact", 2)[0]
        for item in (better, alike, worse)
    ]
    assert verdicts == ["worth it", "not shown", "do not"]


def test_a_type_that_loses_is_found_though_all_together_gain() -> None:
    control, dci = np.array(shares(0.5)), np.array(shares(0.9, seed=5))
    dci[:, 1::2] = np.array(shares(0.2, seed=6))[:, 1::2]
    found = results({"control": control.tolist(), "dci": dci.tolist()}).versus("dci", "control")
    assert found.gain.mean > 0 and found.lost == ["shape"] and not found.beats


def test_all_differences_are_counted_and_one_of_each_kind_is_drawn() -> None:
    found = results({"control": [[0, 0, 1, 1], [1, 1, 1, 1]], "dci": [[1, 1, 0, 1], [0, 1, 1, 1]]})
    first, second = count_differences(found, "dci", [3, 4])
    assert (first.won, first.lost, first.rows) == (2, 1, 4)
    assert (second.won, second.lost, second.examples) == (0, 1, [])
    won, lost = first.examples
    assert won.kind == "won" and won.place in (0, 1) and (won.control, won.retrofit) == ("0", "1")
    assert lost.kind == "lost" and lost.id == "row-2" and lost.question == "which?"
    drawn = {count_differences(found, "dci", [seed, 0])[0].examples[0].place for seed in range(20)}
    assert drawn == {0, 1}


def test_rows_without_a_type_beside_typed_ones_are_told() -> None:
    found = results({"control": [[0, 1, 1]], "dci": [[1, 1, 0]]})
    assert tell_untyped(found) == []
    untyped = {**found.rows, 0: replace(found.rows[0], kind=None)}
    (told,) = tell_untyped(replace(found, rows=untyped))
    assert told.startswith("1 row has no type")
    bare = {at: replace(row, kind=None) for at, row in found.rows.items()}
    assert tell_untyped(replace(found, rows=bare)) == []
