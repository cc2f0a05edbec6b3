"""Which hidden states a connector reads: the only file with layer-index arithmetic.

`hidden_states[0]` is the embeddings, `hidden_states[i]` the output of block i, so a tower of depth
n has states 0..n. The paper counts the embeddings as layer 1: its layer i is state i - 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from dcsurgery.errors import PlanError

Axis = Literal["channel", "token"]


@dataclass(frozen=True)
class FeatureBlock:
    """The mean of some hidden states: `layers` are non-negative, ascending and distinct."""

    layers: tuple[int, ...]

    # pydantic, which plans are read with, takes both classes as they are.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a block reads one hidden state or more")

    def __str__(self) -> str:
        return describe_layers(self.layers)


@dataclass(frozen=True)
class FeatureLayout:
    """What a connector adds to today's feature: blocks from shallow to deep, joined along `axis`.

    Along channels a block's mean meets columns of a new matrix; along tokens it is averaged over
    every `stride` raster-ordered tokens (the remainder is dropped) and appended. `mixed` learns the
    weight of every state inside its block, softmax over the block, equal at the start; `normed`
    puts a LayerNorm on every block. `pool` divides the sides of the token grid after the projector.
    """

    kind: str
    blocks: tuple[FeatureBlock, ...]
    axis: Axis = "channel"
    stride: int = 1
    mixed: bool = False
    normed: bool = False
    pool: int = 1

    __pydantic_config__ = FeatureBlock.__pydantic_config__

    def __post_init__(self) -> None:
        if not self.blocks or self.stride < 1 or self.pool < 1:
            raise ValueError("blocks, stride and pool are one or more")

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The hidden states of every block."""
        return tuple(block.layers for block in self.blocks)

    @property
    def layers(self) -> tuple[int, ...]:
        """Every hidden state that some block reads, ascending."""
        return tuple(sorted({layer for block in self.blocks for layer in block.layers}))

    @property
    def foldable(self) -> bool:
        """True when the connector is one matrix over hidden states, so that a stock form exists."""
        return self.axis == "channel" and not self.normed and self.pool == 1

    @property
    def changes_tokens(self) -> bool:
        """True when an image occupies another number of embeddings than before."""
        return self.axis == "token" or self.pool != 1

    @property
    def spans(self) -> tuple[slice, ...]:
        """Where each block's states lie when those of all blocks are listed one after another."""
        bounds = accumulate((len(block.layers) for block in self.blocks), initial=0)
        return tuple(slice(start, stop) for start, stop in pairwise(bounds))

    def appended_tokens(self, patch_tokens: int) -> int:
        """Tokens the connector appends to an image of `patch_tokens`."""
        return len(self.blocks) * (patch_tokens // self.stride) if self.axis == "token" else 0

    def count_tokens(self, patch_tokens: int) -> int:
        """Image tokens the language model gets for a square grid of `patch_tokens`."""
        side = math.isqrt(patch_tokens)
        kept = (side // self.pool) ** 2 if self.pool > 1 else patch_tokens
        return kept + self.appended_tokens(patch_tokens)


@dataclass(frozen=True)
class Columns:
    """Where a folded matrix of `total` columns keeps what.

    `base` pairs the columns of the old matrix with the new ones; `states` are the columns that read
    one hidden state.
    """

    total: int
    base: tuple[tuple[slice, slice], ...]
    states: Mapping[int, slice]


def joined_columns(layers: Sequence[int], feature_layers: Sequence[int], width: int) -> Columns:
    """Return the columns of a matrix that reads whole states side by side, in the given order."""

    def block(index: int) -> slice:
        return slice(index * width, (index + 1) * width)

    states = {layer: block(index) for index, layer in enumerate(layers)}
    base = tuple((block(index), states[layer]) for index, layer in enumerate(feature_layers))
    return Columns(len(layers) * width, base, states)


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


def output_states(outputs: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the hidden states named by a list of block outputs, which leaves out the embeddings.

    Output i is state i + 1; negative ones count from the end. Raises PlanError for others.
    """
    return tuple(resolve_layer(i + 1 if i >= 0 else i, depth) for i in outputs)


def block_outputs(states: Sequence[int]) -> list[int]:
    """Return the block outputs that hidden states (1 or deeper) are: `output_states` undone."""
    return [state - 1 for state in states]


def distinct_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """Resolve a list of states and sort it. Raises PlanError for none, or one named twice."""
    resolved = tuple(sorted(resolve_layer(layer, depth) for layer in layers))
    twice = next((state for state in resolved if resolved.count(state) > 1), None)
    if not resolved or twice is not None:
        told = "are empty" if twice is None else f"name hidden state {twice} twice"
        raise PlanError(
            f"layers {list(layers)} {told}",
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


def dci_blocks(feature_layer: int, groups: int, first: int = 0) -> tuple[FeatureBlock, ...]:
    """Split the states from `first` to the feature layer F into `groups` runs of adjacent states.

    All of them when their number is divisible by `groups`, else all but F when that is, else all
    split as equally as possible with the larger runs first. The first two give both reference cases
    (arXiv 2405.13800, eq. 3: CLIP-L F = 23 -> 0..11, 12..23; SigLIP F = 26 -> 0..12, 13..25).
    Raises PlanError when there are more groups than states.
    """
    states = feature_layer + 1 - first
    if groups > 0 and states % groups and states > 1 and (states - 1) % groups == 0:
        states -= 1
    runs = split_evenly(states, groups)
    return tuple(FeatureBlock(tuple(first + state for state in run)) for run in runs)


def sci_layers(feature_layer: int, first: int = 0) -> tuple[int, ...]:
    """States at one and two thirds of the way to the feature layer F.

    The paper's layers 8 and 16 of 24 (states 7 and 15 for F = 23), scaled with depth:
    round((F + 1) k / 3) - 1 for k = 1, 2. The reference keeps 7 and 15 for SigLIP: `--layers 7,15`.
    """
    thirds = (round((feature_layer + 1) * k / 3) - 1 for k in (1, 2))
    return tuple(sorted({layer for layer in thirds if first <= layer < feature_layer}))


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
            hint="write states like 7,15, runs like 0-11 or -4..-1, groups like 0-11;12-23",
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
