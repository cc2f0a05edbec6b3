"""A running average of what is trained: steady from the first step on, as good at the end.

AdamW moves every weight by about the learning rate, signal or noise. At the rates that end best the
noise costs a working model several points until the rate falls. It averages out: the average
starts as the base and follows the weights with a lag, a fixed part of the training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from dcsurgery.errors import TrainingError
from dcsurgery.training.checkpoints import read_trained, save_trained
from dcsurgery.training.sharding import in_parts, whole

AVERAGE_FILE = "average.safetensors"
_RUNNING: WeakKeyDictionary[nn.Module, Average] = WeakKeyDictionary()


class Average(TrainerCallback):
    """The exponential average of some parameters of a model, by name.

    `lag` is its time constant in parts of all `steps`.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], lag: float, steps: int) -> None:
        self.model = model
        self.names = names
        self.values = {name: item.clone() for name, item in self._whole()}
        self.weight = 1 / max(1.0, lag * steps)
        _RUNNING[model] = self

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Follow the weights by one step."""
        for name, item in self._whole():
            value = self.values[name]
            value.lerp_(item.to(value.device), self.weight)

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        """Give the parameters by name; FSDP puts others in their places once it splits them."""
        parameters = dict(self.model.named_parameters())
        return ((name, whole(parameters[name])) for name in self.names)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap weights and average. Raises TrainingError where no process holds whole weights."""
        parameters = dict(self.model.named_parameters())
        if any(in_parts(parameters[name]) for name in self.names):
            raise TrainingError(
                "a model that is split over processes cannot compute with its average meanwhile",
                hint="look at it when the training has ended",
            )
        for name, parameter in self._whole():
            now = parameter.clone()
            parameter.copy_(self.values[name])
            self.values[name] = now

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint."""
        save_trained(folder, self.values, AVERAGE_FILE)

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Take the average over from a checkpoint. Raises TrainingError."""
        for name, value in read_trained(folder, self.values, AVERAGE_FILE).items():
            self.values[name].copy_(value)

    def finish(self) -> None:
        """Leave the average in the model, for good."""
        self.exchange()
        self.values = {}


def start_average(
    model: nn.Module, names: tuple[str, ...], lag: float | None, steps: int
) -> Average | None:
    """Return the average of a training that begins, None where it has none."""
    return Average(model, names, lag, steps) if lag else None


@contextmanager
def averaged(model: nn.Module) -> Iterator[None]:
    """Let a model that is being trained compute with its average while the block runs."""
    running = _RUNNING.get(model)
    if running is None or not running.values:
        yield
        return
    running.exchange()
    try:
        yield
    finally:
        running.exchange()
