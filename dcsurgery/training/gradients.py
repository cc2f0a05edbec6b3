"""Which of the announced parameters a training never reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcsurgery.training.freeze import Trained


def without_gradient(state: Mapping[str, Any], trained: Trained) -> tuple[str, ...]:
    """Return the trained parameters whose gradient was none or zero at every update.

    `state` is the state_dict of make_optimizer's AdamW: its mean of squared gradients starts at
    zero and leaves it with the first one. It is kept in checkpoints, so that this holds for a
    training that stopped on its way too.
    """
    found = []
    for group in state["param_groups"]:
        for name, index in zip(trained.groups[group["name"]], group["params"], strict=True):
            squares = state["state"].get(index, {}).get("exp_avg_sq")
            if squares is None or not (squares != 0).any():
                found.append(name)
    return tuple(found)
