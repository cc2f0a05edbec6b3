"""What the probe says of a base of the demo, on questions that no training has."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.request import Connector
from dcsurgery.demo.rows import Rows, training_rows
from dcsurgery.loading.load import load_stock
from dcsurgery.probing.advice import Advice, Candidates
from dcsurgery.probing.gains import Gains
from dcsurgery.probing.slopes import ProbeRow, Subject, measure_slopes
from dcsurgery.surgery.plan import make_plan

FOLDS = 4
# Of the rows: neither a training nor an exam draws its scenes with it.
SEED = 7000


def probe_base(base: Path, rows: int) -> dict[str, Any]:
    """Return the fields of the probe's report (see Advice.fields) on so many questions."""
    drawn = training_rows(SEED, rows, rows)
    given = [
        ProbeRow(
            str(at), at * FOLDS // rows, at, drawn.questions[at].kind, partial(_one, drawn, at)
        )
        for at in range(rows)
    ]
    model = load_stock(base, dtype=torch.float32)
    anatomy = make_plan(open_checkpoint(base), Connector()).anatomy
    candidates = Candidates(anatomy)
    slopes = measure_slopes(Subject(model, anatomy), given, candidates.all)
    gains = Gains(slopes, [row.picture for row in given], [row.kind for row in given])
    return Advice(gains, candidates, ()).fields()


def _one(rows: Rows, at: int) -> dict[str, torch.Tensor]:
    return rows.batch([at])
