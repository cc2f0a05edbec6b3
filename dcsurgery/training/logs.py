"""What a training tells while it runs: training.jsonl, one object per step, and training.png."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from dcsurgery.features import FeatureLayout
from dcsurgery.surgery.plan_file import SurgeryPlan

LOG_FILE = "training.jsonl"
PLOT_FILE = "training.png"
NORM = "norm of "
RATE = "lr "
Watch = Callable[[dict[str, Any]], None]


def block_norms(weight: Tensor | None, layout: FeatureLayout) -> dict[str, float]:
    """Return the Frobenius norm of the new matrix's columns for every feature block, by key.

    `weight` is D [rows, G * width]; nothing where there is none, or only a shard of it.
    """
    count = len(layout.blocks)
    if weight is None or weight.dim() != 2 or weight.shape[1] % count:
        return {}
    norms = [float(part.norm()) for part in weight.detach().float().chunk(count, dim=1)]
    return {f"{NORM}{block}": norm for block, norm in zip(layout.blocks, norms, strict=True)}


class Recorder(TrainerCallback):
    """Writes every logged step to training.jsonl and passes it on to `watch`."""

    def __init__(self, folder: Path, watch: Watch | None, resumed_at: int) -> None:
        self.path = folder / LOG_FILE
        self.watch = watch
        self.history = [row for row in read_log(self.path) if row["step"] <= resumed_at]
        self.writes = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the lines of steps that will be done again."""
        self.writes = state.is_world_process_zero
        if self.writes:
            lines = [json.dumps(row) + "\n" for row in self.history]
            self.path.write_text("".join(lines), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        """Append a step; the summary at the end is none."""
        if not self.writes or "loss" not in logs:
            return
        row = {"step": state.global_step, "steps": state.max_steps, **logs}
        self.history.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.watch is not None:
            self.watch(row)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a training.jsonl; a last line that was cut off is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def draw(history: Sequence[dict[str, Any]], plan: SurgeryPlan, path: Path) -> None:
    """Draw loss, learning rates and block norms over the steps into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    loss, rates, norms = figure.subplots(3, 1, sharex=True)
    steps = [row["step"] for row in history]
    loss.plot(steps, [row["loss"] for row in history], linewidth=1)
    loss.set_ylabel("loss")
    loss.set_title(f"{plan.kind} connector in {plan.base.id}")
    for axis, prefix, label in ((rates, RATE, "learning rate"), (norms, NORM, "norm of the block")):
        keys = [key for key in history[0] if key.startswith(prefix)] if history else []
        for key in keys:
            axis.plot(steps, [row.get(key) for row in history], label=key.removeprefix(prefix))
        axis.set_ylabel(label)
        if keys:
            axis.legend(title="states" if prefix == NORM else None, fontsize="small")
    norms.set_xlabel("step")
    figure.savefig(path, dpi=110)
