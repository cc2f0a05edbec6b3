"""The wiring as a picture: which hidden states reach the projector, through which matrix.

PNG, because model pages do not show SVG files of the repository.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from dcsurgery.features import describe_layers
from dcsurgery.surgery.plan_file import DELTA_FOLDER, SurgeryPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_FILE = f"{DELTA_FOLDER}/wiring.png"
TODAY, ADDED, LINE = "#5b6770", "#c2410c", "#9aa5ad"
LABEL_AT, MATRIX_AT = 1.04, 1.42


def draw_wiring(plan: SurgeryPlan) -> bytes:
    """Return the picture of a plan's wiring as PNG; the same plan gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lanes = _lanes(plan)
    height = 0.9 + 0.42 * len(lanes)
    figure = Figure(figsize=(9, height), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.6 / height, 0.42, 1 - 0.7 / height))
    depth = plan.anatomy.tower.depth
    axes.set_xlim(-0.6, depth + 0.6)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_yticks(range(len(lanes)), [lane[0] for lane in lanes])
    axes.set_xlabel("hidden state of the vision tower")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, axis="y")
    for row, (_, layers, reads, matrix) in enumerate(lanes):
        colour = ADDED if row else TODAY
        _lane(axes, row, depth, layers, colour)
        _text(axes, LABEL_AT, row, reads, colour)
        _text(axes, MATRIX_AT, row, f"→ {matrix}", colour)
    end = "sum → rest of the projector → language model"
    if plan.layout.axis == "token":
        end = "all tokens → projector → language model"
    _text(axes, LABEL_AT, len(lanes) - 0.3, end, TODAY)
    buffer = io.BytesIO()
    # Without the version of the library: the bytes follow from the plan alone.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _lanes(plan: SurgeryPlan) -> list[tuple[str, tuple[int, ...], str, str]]:
    """Label, states, what is read of them, and the matrix that takes it."""
    states = tuple(sorted(set(plan.feature_layers)))
    lanes = [("base", states, f"state {describe_layers(states)}", "W")]
    for number, block in enumerate(plan.layout.blocks, 1):
        kind = "state" if len(block.layers) == 1 else "mix of" if plan.layout.mixed else "mean of"
        reads = f"{kind} {block}"
        if plan.layout.normed:
            reads = f"norm of {reads}"
        matrix = (
            f"W, {plan.layout.stride} tokens to 1" if plan.layout.axis == "token" else f"D{number}"
        )
        lanes.append((f"+ {plan.kind}" if number == 1 else "", block.layers, reads, matrix))
    return lanes


def _lane(axes: Axes, row: int, depth: int, layers: tuple[int, ...], colour: str) -> None:
    axes.plot([0, depth], [row, row], color=LINE, linewidth=0.8, zorder=1)
    axes.scatter(range(depth + 1), [row] * (depth + 1), s=14, color="white", edgecolor=LINE)
    axes.scatter(layers, [row] * len(layers), s=30, color=colour, zorder=3)


def _text(axes: Axes, across: float, row: float, text: str, colour: str) -> None:
    place = axes.get_yaxis_transform()
    axes.text(across, row, text, transform=place, va="center", color=colour, fontsize=10)
