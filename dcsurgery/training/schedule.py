"""Learning rates: a peak for every group of parameters, one schedule for all."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dcsurgery.training.freeze import Trained
from dcsurgery.training.settings import TrainingSettings


class Schedule:
    """The factor on a peak rate at a step: a straight climb, a cosine to zero.

    It is transformers' cosine schedule with warm-up, but that the last step never is a part of the
    climb: a training of one step would otherwise train nothing.
    """

    def __init__(self, steps: int, warmup: float) -> None:
        self.steps = steps
        self.top = min(math.ceil(steps * warmup), steps - 1)

    def __call__(self, step: int) -> float:
        """Return the factor for the update after `step` finished ones."""
        if step < self.top:
            return step / self.top
        done = (step - self.top) / max(1, self.steps - self.top)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))


def make_optimizer(
    model: nn.Module, trained: Trained, settings: TrainingSettings
) -> torch.optim.Optimizer:
    """Return AdamW with one parameter group per group that is trained, named after it."""
    rates = {
        "connector": settings.connector_lr,
        "projector": settings.projector_lr,
        "language": settings.lr,
        "tower": settings.tower_lr,
    }
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [parameters[name] for name in names], "lr": rates[group], "name": group}
        for group, names in trained.groups.items()
    ]
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)


def make_scheduler(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the scheduler of an optimizer of make_optimizer for a training of `steps` updates."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, Schedule(steps, settings.warmup or 0.0))
