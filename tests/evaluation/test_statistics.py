from __future__ import annotations

import math

import numpy as np
import pytest

from dcsurgery.evaluation.intervals import EXACT, compare_rows, score_columns, score_rows, sign_flip


def mcnemar(better: int, worse: int) -> float:
    """The exact two-sided p-value of McNemar's test: a binomial with p = 1/2."""
    count, most = better + worse, max(better, worse)
    tail = sum(math.comb(count, k) for k in range(most, count + 1)) / 2**count
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (9, 2), (12, 1), (0, 6)])
def test_single_rows_of_0_and_1_give_mcnemars_exact_test(better: int, worse: int) -> None:
    assert better + worse <= EXACT
    new = [1.0] * better + [0.0] * worse + [1.0, 0.0] * 5
    old = [0.0] * better + [1.0] * worse + [1.0, 0.0] * 5
    found = compare_rows(new, old, range(len(new)))
    assert found.p_value == pytest.approx(mcnemar(better, worse))
    assert found.difference == pytest.approx((better - worse) / len(new))


def test_many_differences_are_flipped_at_random_and_come_near() -> None:
    parts = np.array([1.0] * 32 + [-1.0] * 18)
    assert sign_flip(parts) == pytest.approx(mcnemar(32, 18), abs=0.01)
    assert sign_flip(parts) == sign_flip(parts)
    assert sign_flip(parts, seed=1) != sign_flip(parts)
    assert sign_flip(np.ones(200)) == pytest.approx(1e-4)


def test_intervals_come_near_the_normal_one_for_many_rows() -> None:
    values = [1.0] * 300 + [0.0] * 700
    found = score_rows(values, range(1000))
    spread = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert found.mean == pytest.approx(0.3) and found.rows == 1000
    assert (found.low, found.high) == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.003)


def test_rows_that_share_a_picture_count_as_one_draw() -> None:
    values = [float(value) for value in np.random.default_rng(0).integers(0, 2, 60)]
    single = score_rows(values, range(60))
    copied = values * 4
    clustered = score_rows(copied, [*range(60)] * 4)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))
    alone = score_rows(copied, range(240))
    assert alone.high - alone.low < 0.7 * (single.high - single.low)
    new, old = [1.0] * 8, [0.0] * 8
    assert compare_rows(new, old, [0, 0, 0, 0, 1, 1, 1, 1]).p_value == pytest.approx(0.5)
    assert compare_rows(new, old, range(8)).p_value == pytest.approx(2 / 2**8)


def test_a_loss_is_weighted_by_its_tokens() -> None:
    found = score_rows([1.0, 4.0], [0, 1], [3, 1])
    assert found.mean == pytest.approx(7 / 4)
    assert compare_rows([1.0, 4.0], [2.0, 2.0], [0, 1], [3, 1]).difference == pytest.approx(-1 / 4)


def test_seeds_decide_the_interval() -> None:
    values = [float(value) for value in np.random.default_rng(1).normal(size=50)]
    first, again, other = (score_rows(values, range(50), seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.low < first.mean < first.high


def test_columns_are_scored_as_each_alone_and_rows_without_weight_are_none_of_theirs() -> None:
    draw = np.random.default_rng(0)
    values, weights = draw.normal(size=(60, 3)), draw.integers(1, 4, (60, 3)).astype(float)
    clusters = [f"picture {row // 2}" for row in range(60)]
    weights[::2, 2] = 0
    found = score_columns(values, clusters, weights)
    for column in (0, 1):
        alone = values[:, column].tolist(), clusters, weights[:, column].tolist()
        assert found[column].mean == pytest.approx(score_rows(*alone).mean)
        assert found[column].low == pytest.approx(score_rows(*alone).low)
        assert found[column].high == pytest.approx(score_rows(*alone).high)
    assert found[2].rows == 30
    assert found[2].mean == pytest.approx(np.average(values[1::2, 2], weights=weights[1::2, 2]))
    # A type of which most samples have no row at all still has an interval.
    rare = np.zeros((60, 1))
    rare[0] = 1
    (only,) = score_columns(values[:, :1], clusters, rare)
    assert only.low == only.mean == only.high
