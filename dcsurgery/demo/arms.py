"""The arms of the comparison: what is built into a base before the same short training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dcsurgery.demo.checkpoints import FEATURE_LAYER
from dcsurgery.surgery.convert import convert_checkpoint

Start = Literal["zero", "held", "random"]


@dataclass(frozen=True)
class Arm:
    """One way to spend a training: which states the new matrix reads and how it starts.

    Without training it shows the base. "zero" leaves the base as it was, "held" keeps the matrix at
    zero for good, "random" draws it.
    """

    name: str
    title: str
    layers: str | None = None
    start: Start = "zero"
    trained: bool = True

    def build(self, base: Path, folder: Path) -> tuple[Any, Any]:
        """Write the arm's delta of a base, load it in fp32, and return (model, plan)."""
        import torch

        from dcsurgery.loading.load import load_model

        done = convert_checkpoint(base, folder, form="delta", layers=self.layers)
        model = load_model(folder, dtype=torch.float32)
        matrix = model.dense_connector.weight
        if self.start == "held":
            # Its gradient is dropped before anything looks at it: no update, no share in a norm.
            matrix.register_hook(torch.zeros_like)
        elif self.start == "random":
            generator = torch.Generator().manual_seed(0)
            # As a linear layer over today's feature and the new ones would be drawn.
            columns = done.plan.anatomy.projector.sites[0].in_features + matrix.shape[1]
            bound = 1 / math.sqrt(columns)
            with torch.no_grad():
                matrix.uniform_(-bound, bound, generator=generator)
        return model, done.plan


ARMS = {
    arm.name: arm
    for arm in (
        Arm("base", "before training", start="held", trained=False),
        Arm("control", "same training, no retrofit", start="held"),
        Arm("repeated", "same matrix, today's feature twice", f"{FEATURE_LAYER};{FEATURE_LAYER}"),
        Arm("retrofit", "dense connector (dci)"),
        Arm("random", "dense connector, random start", start="random"),
    )
}
# What fits into the demo's minutes; its full run does all.
STORY = ("base", "control", "repeated", "retrofit")
# Where the probe recommends states, they are an arm as well.
CHOSEN = Arm("chosen", "dense connector, the probe's states")


def find_arm(name: str, layers: str | None = None) -> Arm:
    """Return an arm by its name; `layers` are the states of the chosen one."""
    return replace(CHOSEN, layers=layers) if name == CHOSEN.name else ARMS[name]
