"""What all arms of all towers share: data sizes, steps, rates."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Exercise(BaseModel):
    """Sizes are scenes: training asks random questions about them, an exam ten about each.

    `probed_rows` are the questions that the probe looks at, `looks` the steps after which
    validation is asked. `rates` go to TrainingSettings and replace its defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 300
    batch_size: int = 64
    train_scenes: int = 4000
    val_scenes: int = 60
    test_scenes: int = 300
    test_seed: int = 501
    probed_rows: int = 1024
    looks: tuple[int, ...] = (10, 25, 50, 100, 200)
    rates: dict[str, Any] = {"connector_lr": 3e-3, "projector_lr": 3e-3}
