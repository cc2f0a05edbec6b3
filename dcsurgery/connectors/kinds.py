"""The four kinds of connector: each turns an anatomy and a request into a FeatureLayout.

All raise PlanError for states the tower does not have; sci and sti also for groups of states.
"""

from __future__ import annotations

from dataclasses import replace

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.features import (
    FeatureBlock,
    FeatureLayout,
    dci_blocks,
    distinct_layers,
    sci_layers,
    split_evenly,
)

# The reference pools 8 raster-ordered tokens (AvgPool1d, kernel 8, stride 8).
STI_STRIDE = 8


def dci(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Dense Channel Integration: means of groups of adjacent states, joined along channels.

    The blocks of arXiv 2405.13800 eq. 3-4, or the means of the given groups of states.
    """
    layers = asked.states
    if layers is None:
        blocks = dci_blocks(anatomy.feature_layer, asked.groups, anatomy.first_state)
        return FeatureLayout("dci", blocks)
    layers = tuple(distinct_layers(group, anatomy.tower.depth) for group in layers)
    only = layers[0]
    # A single state is one group, whatever number is usual.
    if len(layers) == 1 and asked.groups > 1 and len(only) > 1:
        layers = tuple(only[run.start : run.stop] for run in split_evenly(len(only), asked.groups))
    return FeatureLayout("dci", tuple(map(FeatureBlock, layers)))


def mix(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Learned mixture: DCI's groups with sum_l softmax(a)_l V_l of learned a instead of means."""
    return replace(dci(anatomy, asked), kind="mix", mixed=True)


def sci(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Sparse Channel Integration: single states, joined along channels.

    The states of arXiv 2405.13800 eq. 2, or the given ones. With `norm` every extra state passes a
    LayerNorm of its own before the new matrix, as in ViP-LLaVA.
    """
    return FeatureLayout("sci", _single_states(anatomy, asked), normed=asked.norm)


def sti(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Sparse Token Integration: the states of eq. 1, or the given ones, pooled by 8 along tokens
    and appended to the patch tokens.
    """
    return FeatureLayout("sti", _single_states(anatomy, asked), axis="token", stride=STI_STRIDE)


def _single_states(anatomy: Anatomy, asked: Connector) -> tuple[FeatureBlock, ...]:
    """Return one block per state: the given ones, or the kind's rule."""
    if asked.states is not None and len(asked.states) > 1:
        raise PlanError(
            f"{asked.kind} joins single hidden states and has no groups",
            hint="write --layers 7,15, or use --connector dci for groups",
        )
    wanted = (
        asked.states[0] if asked.states else sci_layers(anatomy.feature_layer, anatomy.first_state)
    )
    if not wanted:
        raise PlanError(
            f"feature layer {anatomy.feature_layer} leaves no shallower hidden state to add",
            hint="name the states yourself: --layers 0,1",
        )
    # The given order is kept: column order is part of what a trained matrix means.
    depth = anatomy.tower.depth
    distinct_layers(wanted, depth)
    return tuple(FeatureBlock(distinct_layers((i,), depth)) for i in wanted)
