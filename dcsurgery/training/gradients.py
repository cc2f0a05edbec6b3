"""Which of the announced parameters a training never reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dcsurgery.training.freeze import Trained


def without_gradient(
    state: Mapping[str, Any], trained: Trained, sharded: bool = False
) -> tuple[str, ...]:
    """Return the trained parameters whose gradient was none or zero at every update.

    `state` is the state_dict of make_optimizer's AdamW: its mean of squared gradients starts at
    zero and leaves it with the first one. It is kept in checkpoints, so that this holds for a
    training that stopped on its way too. `sharded`: every process holds a part of each parameter.
    """
    names, reached = [], []
    for group in state["param_groups"]:
        for name, index in zip(trained.groups[group["name"]], group["params"], strict=True):
            squares = state["state"].get(index, {}).get("exp_avg_sq")
            names.append(name)
            reached.append(squares is not None and bool((squares != 0).any()))
    found = torch.tensor(reached, dtype=torch.int)
    if sharded:
        if torch.cuda.is_available():
            found = found.cuda()
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return tuple(name for name, touched in zip(names, found.tolist(), strict=True) if not touched)
