"""What is kept does not grow with rows, and states are taken in turns where they would not fit."""

from __future__ import annotations

import gc
from functools import partial

import numpy as np
import pytest
import torch

from dcsurgery.probing.advice import Candidates
from dcsurgery.probing.moments import SiteSums, bytes_for
from dcsurgery.probing.slopes import Subject, measure_slopes, split
from tests.probing.toy import ANATOMY, OUT, WIDTH, Toy, make_rows, planted

pytestmark = pytest.mark.slow


def live() -> tuple[int, int]:
    """Tensors that anything still holds, and their numbers."""
    gc.collect()
    found = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    return len(found), sum(item.numel() for item in found)


def held_at(count: int, at: float) -> tuple[int, int]:
    """What a probe of `count` rows holds after a part of its steps, beyond model and rows."""
    rows, candidates, model = make_rows(partial(planted, [1]), count), Candidates(ANATOMY), Toy()
    before, seen = live(), []

    def look(done: int, total: int, what: str) -> None:
        if done == int(at * total):
            seen.append(live())

    measure_slopes(Subject(model, ANATOMY), rows, candidates.all, progress=look)
    ((tensors, numbers),) = seen
    return tensors - before[0], numbers - before[1]


@pytest.mark.parametrize("at", [0.4, 0.9])
def test_twice_the_rows_hold_no_more_tensors(at: float) -> None:
    assert held_at(24, at) == held_at(48, at)


def test_sums_do_not_grow() -> None:
    def sizes(rows: int) -> dict[str, torch.Size]:
        sums = SiteSums(4)
        for fold in range(rows):
            x, h, error = torch.randn(7, 5), torch.randn(3, 7, 6), torch.randn(7, 8)
            sums.add(fold % 4, x, h, error)
        return {name: value.shape for name, value in sums.sums.items()}

    assert sizes(4) == sizes(40)


def test_states_in_turns_hold_less_and_say_the_same() -> None:
    rows, candidates = make_rows(partial(planted, [1]), 48), Candidates(ANATOMY).all
    small = bytes_for(WIDTH, WIDTH, OUT, 4) * 2
    parts = split(ANATOMY, candidates, 4, small)
    assert [len(part) for part in parts[:-1]] == [2] * (len(parts) - 1)
    assert [item for part in parts for item in part] == candidates
    whole = measure_slopes(Subject(Toy(), ANATOMY), rows, candidates)
    turns: list[tuple[int, int]] = []
    parted = measure_slopes(
        Subject(Toy(), ANATOMY),
        rows,
        candidates,
        budget=small,
        progress=lambda done, total, what: turns.append((done, total)),
    )
    assert turns[-1] == (2 * len(rows) * len(parts),) * 2
    scale = np.abs(whole.values).max()
    assert np.abs(parted.values - whole.values).max() < 1e-4 * scale
    np.testing.assert_array_equal(parted.losses, whole.losses)


def test_one_state_is_always_taken() -> None:
    assert all(len(part) == 1 for part in split(ANATOMY, Candidates(ANATOMY).all, 4, 1))


def test_rows_of_one_picture_stay_together_in_intervals() -> None:
    """Each row four times is no news: the interval must not get narrower."""
    from tests.probing.toy import probe_toy

    once = probe_toy(make_rows(partial(planted, [2]), 80))
    rows = [row for row in make_rows(partial(planted, [2]), 80) for _ in range(4)]
    often = probe_toy(rows)
    width = [
        item.report["states"][2].gain.high - item.report["states"][2].gain.low
        for item in (once, often)
    ]
    assert width[1] == pytest.approx(width[0], rel=0.2)
