"""Which hidden states a connector reads: the only file with layer-index arithmetic.

`hidden_states[0]` is the embeddings, `hidden_states[i]` the output of block i, so a tower of depth
n has states 0..n. The paper counts the embeddings as layer 1: its layer i is state i - 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from dcsurgery.errors import PlanError

Axis = Literal["channel", "token"]


@dataclass(frozen=True)
class FeatureBlock:
    """The mean of some hidden states: `layers` are non-negative, ascending and distinct."""

    layers: tuple[int, ...]

    def __str__(self) -> str:
        return describe_layers(self.layers)


@dataclass(frozen=True)
class FeatureLayout:
    """Feature blocks from shallow to deep, joined after today's feature along `axis`."""

    kind: str
    blocks: tuple[FeatureBlock, ...]
    axis: Axis = "channel"

    @property
    def layers(self) -> tuple[int, ...]:
        """Every hidden state that some block reads, ascending."""
        return tuple(sorted({layer for block in self.blocks for layer in block.layers}))


def describe_layers(layers: Sequence[int]) -> str:
    """Short text for a list of states: "0..11" for a run, "7, 15" otherwise."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(
        f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def resolve_layer(layer: int, depth: int) -> int:
    """Return `layer` as a non-negative index into the depth + 1 hidden states.

    Raises PlanError when there is no such state.
    """
    resolved = layer + depth + 1 if layer < 0 else layer
    if not 0 <= resolved <= depth:
        raise PlanError(
            f"hidden state {layer} does not exist: the vision tower has {depth} blocks, "
            f"so states 0 to {depth} (or -{depth + 1} to -1)",
            hint="run `dcsurgery inspect MODEL` to see the states and the feature layer",
        )
    return resolved


def distinct_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Resolve a list of states and sort it. Raises PlanError for none, or one named twice."""
    resolved = tuple(sorted(resolve_layer(layer, depth) for layer in layers))
    if not resolved or len(set(resolved)) != len(resolved):
        raise PlanError(
            f"layers {list(layers)} {'name a hidden state twice' if resolved else 'are empty'}",
            hint="name each hidden state once; negative ones count from the end",
        )
    return resolved


def split_evenly(count: int, groups: int) -> tuple[range, ...]:
    """Cut 0..count-1 into `groups` runs as equal as possible, the larger ones first.

    Raises PlanError when there are more groups than items.
    """
    if not 1 <= groups <= count:
        raise PlanError(
            f"{groups} groups cannot be made of {count} hidden states",
            hint=f"pass --groups between 1 and {count}",
        )
    size, larger = divmod(count, groups)
    bounds = [index * size + min(index, larger) for index in range(groups + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


def dci_blocks(feature_layer: int, groups: int) -> tuple[FeatureBlock, ...]:
    """Split the states up to the feature layer F into `groups` runs of adjacent states.

    States 0..F when F + 1 is divisible by `groups`, else 0..F-1 when F is, else 0..F split as
    equally as possible with the larger runs first. The first two give both reference cases (arXiv
    2405.13800, eq. 3: CLIP-L F = 23 -> 0..11, 12..23; SigLIP F = 26 -> 0..12, 13..25).
    Raises PlanError when there are more groups than states.
    """
    states = feature_layer + 1
    if groups > 0 and states % groups and feature_layer and feature_layer % groups == 0:
        states = feature_layer
    return tuple(FeatureBlock(tuple(run)) for run in split_evenly(states, groups))


def sci_layers(feature_layer: int) -> tuple[int, ...]:
    """States at one and two thirds of the way to the feature layer F.

    The paper's layers 8 and 16 of 24 (states 7 and 15 for F = 23), scaled with depth:
    round((F + 1) k / 3) - 1 for k = 1, 2. The reference keeps 7 and 15 for SigLIP: `--layers 7,15`.
    """
    thirds = (round((feature_layer + 1) * k / 3) - 1 for k in (1, 2))
    return tuple(sorted({layer for layer in thirds if 0 <= layer < feature_layer}))


def parse_layers(text: str) -> tuple[tuple[int, ...], ...]:
    """Read `--layers`: items by comma, runs as A-B or A..B, groups by semicolon or slash.

    "7,15" -> ((7, 15),); "0-11;12-23" -> ((0, ..., 11), (12, ..., 23)).
    Raises PlanError for anything else.
    """
    try:
        return tuple(_parse_group(group) for group in text.replace("/", ";").split(";"))
    except ValueError:
        raise PlanError(
            f"--layers {text!r} is not a list of hidden states",
            hint="write states like 7,15, runs like 0-11, groups like 0-11;12-23",
        ) from None


def _parse_group(text: str) -> tuple[int, ...]:
    layers: list[int] = []
    for item in text.split(","):
        item = item.strip()
        head, dots, tail = item.partition("..")
        if not dots:
            head, dots, tail = item.partition("-") if not item.startswith("-") else (item, "", "")
        if dots:
            first, last = int(head), int(tail)
            if last < first or last - first > 4096:
                raise ValueError(item)
            layers.extend(range(first, last + 1))
        else:
            layers.append(int(item))
    return tuple(layers)


def stock_layers(layout: FeatureLayout, feature_layers: Iterable[int]) -> tuple[int, ...]:
    """The states a folded checkpoint reads: blocks and today's feature, ascending and distinct.

    One serving engine sorts and de-duplicates the configured list; any other order would compute
    something else there.
    """
    return tuple(sorted({*layout.layers, *feature_layers}))
