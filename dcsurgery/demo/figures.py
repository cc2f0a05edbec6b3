"""The demo's pictures: learning curves, what the new matrix uses, questions with answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dcsurgery.demo.arms import find_arm
from dcsurgery.demo.digits import Bytes
from dcsurgery.demo.outcome import Outcome
from dcsurgery.demo.tables import base_curves

COLOURS = {
    "control": "#7a7a7a", "repeated": "#c98b2b", "retrofit": "#1f6fb4", "random": "#b43c3c",
    "chosen": "#3c8c4f",
}  # fmt: skip


def draw_curves(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw validation over steps: a thin line per tower, a thick one for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for arm, colour in COLOURS.items():
        curves = base_curves(outcomes, arm)
        if not curves:
            continue
        steps = list(curves[0])
        # Points over each tower's own base: towers differ by more than arms do.
        values = np.array([[100 * curve[step] for step in steps] for curve in curves])
        for line in values:
            axis.plot(steps, line, color=colour, linewidth=0.6, alpha=0.4)
        axis.plot(steps, values.mean(axis=0), color=colour, linewidth=2, label=find_arm(arm).title)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xlabel("step")
    axis.set_ylabel("validation, points above the base")
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def draw_blocks(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw what each feature block adds to the projector's first product, a bar per tower."""
    from matplotlib.figure import Figure

    mine = [item for item in outcomes if item.arm == "retrofit"]
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(mine[0].blocks))
    width = 0.8 / len(mine)
    for index, item in enumerate(mine):
        axis.bar(places + index * width, [100 * u for u in item.used], width, label=item.tower)
    axis.set_xticks(places + 0.4 - width / 2, [f"states {block}" for block in mine[0].blocks])
    axis.set_ylabel("added, % of today's product")
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def draw_question(picture: Bytes, lines: Sequence[str], path: Path) -> None:
    """Draw a picture [48, 48, 3] with lines of text beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    left.imshow(picture, interpolation="nearest")
    left.set_axis_off()
    right.set_axis_off()
    right.text(0, 0.5, "\n".join(lines), va="center", fontsize=11, linespacing=1.6)
    figure.savefig(path, dpi=110)
