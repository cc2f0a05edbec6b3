"""The slopes of real models' rows equal a plain restatement of the formulas, several kinds of them.

Merged patches, pixel shuffle, pooling inside the site, a global transformer, three sites.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcsurgery.features import FeatureBlock
from dcsurgery.probing.listen import Listener, RowReading, listening
from dcsurgery.probing.moments import DAMP_ERROR, DAMP_STATE, RIDGE
from dcsurgery.probing.slopes import Candidate, ProbeRow, Subject, measure_slopes
from tests.architectures.cases import Case
from tests.closeness import PAPER, assert_near
from tests.training.tasks import make_rows

pytestmark = pytest.mark.slow

ROWS, FOLDS = 8, 4
KINDS = ("llava", "qwen2_5_vl", "idefics3", "internvl", "gemma3", "mllama", "molmo2", "glm4v")
Array = NDArray[np.float64]


def damped(matrix: Array, damping: float) -> Array:
    return matrix + damping * np.eye(len(matrix))


def restated(readings: list[RowReading], folds: list[int], block: int, other: bool) -> list[float]:
    """Slopes of one state: docs/probe.md, row by row, in float64; `other`: of the row before."""
    found = [0.0] * len(readings)
    for site in range(len(readings[0].sites)):
        rows = [reading.sites[site] for reading in readings]
        x = [row.read.double().numpy() for row in rows]
        e = [row.error.double().numpy() for row in rows]
        own = [row.states[:, block].double().numpy() for row in rows]
        h = [own[at - 1] for at in range(len(own))] if other else own
        mean_x, mean_h = np.concatenate(x).mean(0), np.concatenate(h).mean(0)
        all_x, all_h = np.concatenate(x) - mean_x, np.concatenate(h) - mean_h
        xx, raw = all_x.T @ all_x / len(all_x), (all_h**2).mean()
        beta = np.linalg.solve(damped(xx, RIDGE * np.trace(xx) / len(xx)), all_x.T @ all_h)
        beta /= len(all_x)
        new = [(hi - mean_h) - (xi - mean_x) @ beta for hi, xi in zip(h, x, strict=True)]
        state = np.concatenate(new).T @ np.concatenate(new) / len(all_x)
        error = sum(ei.T @ ei for ei in e) / len(e)
        for at, fold in enumerate(folds):
            rest = [i for i, theirs in enumerate(folds) if theirs != fold]
            slope = sum(e[i].T @ new[i] for i in rest) / len(e)
            left = np.linalg.solve(damped(error, DAMP_ERROR * np.trace(error) / len(error)), slope)
            step = -left @ np.linalg.inv(damped(state, DAMP_STATE * raw))
            found[at] += float((e[at].T @ new[at] * step).sum())
    return found


@pytest.mark.parametrize("name", KINDS)
def test_slopes_are_what_the_formulas_say(families: dict[str, Case], name: str) -> None:
    case = families[name]
    model = case.plain()
    rows = make_rows(case.tiny, model, ROWS)
    folds = [at * FOLDS // ROWS for at in range(ROWS)]
    first = case.anatomy.first_state
    blocks = (FeatureBlock((first,)), FeatureBlock((first, first + 1)))
    candidates = [Candidate(blocks[0]), Candidate(blocks[1]), Candidate(blocks[0], True)]
    given = [
        ProbeRow(rows.name_of(at), folds[at], at, None, partial(rows.__getitem__, at))
        for at in range(ROWS)
    ]
    arrange = case.architecture.arrange
    slopes = measure_slopes(Subject(model, case.anatomy, arrange), given, candidates)
    with listening(model, Listener(case.anatomy, blocks, arrange)) as reader:
        readings = [reader.read(row) for row in rows.rows]
    for at, (block, other) in enumerate(((0, False), (1, False), (0, True))):
        wanted = torch.tensor(restated(readings, folds, block, other))
        assert_near(torch.tensor(slopes.values[:, at]), wanted, 10 * PAPER, f"{name} {at}")
    assert slopes.tokens.tolist() == [3] * ROWS
