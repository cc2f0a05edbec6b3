"""A picture of the wiring: which hidden states go where. Pure text, at most 80 columns.

state   0         10        20
        ┼┴┴┴┴┴┴┴┴┴┼┴┴┴┴┴┴┴┴┴┼┴┴┴┴
today                          █   23            ─▶ W  [4096, 1024] ─┐
+ dci   ├──────────┤               mean of 0..11 ─▶ D1 [4096, 1024] ─┤
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcsurgery.anatomy import Anatomy
from dcsurgery.features import FeatureBlock, FeatureLayout, describe_layers

LABEL = 8
SCALE_COLUMNS = 30


@dataclass(frozen=True)
class _Lane:
    """One row: who reads, which states, what they become, which matrix takes them."""

    label: str
    layers: tuple[int, ...]
    reads: str
    matrix: str
    shape: str


def draw_wiring(anatomy: Anatomy, layouts: Sequence[FeatureLayout]) -> str:
    """Return the picture of today's wire and of the lanes each layout would add to it.

    Lines are at most 80 columns for towers of up to 100 blocks and connectors of up to 9 blocks.
    """
    states = anatomy.tower.depth + 1
    step = -(-states // SCALE_COLUMNS)
    lanes = [_today(anatomy)]
    for number, layout in enumerate(layouts):
        lanes += _lanes(anatomy, layout, "or" if number else "+")
    reads = max(len(lane.reads) for lane in lanes)
    names = max(len(lane.matrix) for lane in lanes)
    shapes = max(len(lane.shape) for lane in lanes)
    numbers, ticks = _ruler(states, step)
    lines = [f"{'state':<{LABEL}}{numbers}", f"{'':<{LABEL}}{ticks}"]
    for index, lane in enumerate(lanes):
        left = f"{lane.label:<{LABEL}}{_marks(lane.layers, states, step)}"
        middle = f"  {lane.reads:<{reads}} ─▶ {lane.matrix:<{names}} {lane.shape:<{shapes}}"
        lines.append(left + middle + (" ─┐" if index == 0 else " ─┤"))
    corner = len(lines[-1]) - 1
    lines.append(" " * corner + "▼")
    return "\n".join([*lines, _tail(anatomy, layouts, corner)])


def _today(anatomy: Anatomy) -> _Lane:
    layers = tuple(sorted(set(anatomy.feature_layers)))
    projector = anatomy.projector
    shape = f"[{projector.out_features}, {projector.sites[0].in_features}]"
    return _Lane("today", layers, describe_layers(layers), "W", shape)


def _lanes(anatomy: Anatomy, layout: FeatureLayout, sign: str) -> list[_Lane]:
    shape = f"[{anatomy.projector.out_features}, {anatomy.feature_width}]"
    token = layout.axis == "token"
    return [
        _Lane(
            label=f"{sign} {layout.kind}" if index == 0 else "",
            layers=block.layers,
            reads=_reads(layout, block),
            matrix="W" if token else f"D{index + 1}",
            shape="more tokens" if token else shape,
        )
        for index, block in enumerate(layout.blocks)
    ]


def _reads(layout: FeatureLayout, block: FeatureBlock) -> str:
    text = str(block)
    if len(block.layers) > 1:
        text = f"{'mix' if layout.mixed else 'mean'} of {text}"
    if layout.normed:
        text = f"norm of {text}"
    return f"{text}, {layout.stride} to 1" if layout.stride > 1 else text


def _ruler(states: int, step: int) -> tuple[str, str]:
    """Return the numbers and the ticks; one column stands for `step` states."""
    columns = -(-states // step)
    numbers, ticks = "", ""
    for column in range(columns):
        numbered = column % 10 == 0
        ticks += "┼" if numbered else "┴"
        if numbered:
            numbers = f"{numbers:<{column}}{column * step}"
    return numbers, ticks


def _marks(layers: Sequence[int], states: int, step: int) -> str:
    """Return one row of marks: runs of states as brackets, lone ones as blocks."""
    columns = sorted({layer // step for layer in layers})
    row = [" "] * -(-states // step)
    for column in columns:
        before, after = column - 1 in columns, column + 1 in columns
        row[column] = {(0, 0): "█", (0, 1): "├", (1, 0): "┤", (1, 1): "─"}[(before, after)]
    return "".join(row)


def _tail(anatomy: Anatomy, layouts: Sequence[FeatureLayout], corner: int) -> str:
    before = anatomy.image_tokens
    counts = {layout.count_tokens(before) for layout in layouts if layout.changes_tokens}
    tokens = str(before) + "".join(f" or {count}" for count in sorted(counts))
    if len(layouts) == 1 and counts:
        tokens = str(*counts)
    text = f"sum, rest of the projector ─▶ {tokens} image tokens ─▶ {anatomy.language_model}"
    return " " * max(corner - len(text) + 1, 0) + text
