"""What a training costs: measured here, and an estimate for another device from its arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.evaluation.trial_report import Estimate

# An A100's dense bf16 peak, and the share of it that trainings of such models usually reach.
A100 = 312e12
REACHED = 0.4
# The steps of a training.
Log = Sequence[Mapping[str, Any]]


def estimate_a100(checkpoint: Checkpoint, logs: Iterable[tuple[int, Log]]) -> Estimate | None:
    """Return the hours that the updates of all trainings would take; None where there were none.

    `logs` has the trained parameters of every training, and the steps of its log.
    """
    size = sum(prod(entry.shape) for entry in checkpoint.tensors.values())
    pairs = [(trained, sum(row["tokens"] for row in log)) for trained, log in logs]
    flop = sum(tokens * (4 * size + 2 * trained) for trained, tokens in pairs)
    if not flop:
        return None
    tokens = sum(count for _, count in pairs)
    return Estimate(
        device="A100",
        hours=flop / (A100 * REACHED) / 3600,
        flop=float(flop),
        formula=(
            f"computed, not measured: {tokens:,} tokens x (4 x {size:,} parameters of the model + "
            "2 x those that are trained) floating-point operations, at 40 % of 312 TFLOP/s (bf16); "
            "as if the tower saw every token, and without reading data, evaluation or the probe"
        ),
    )
