"""Dense Channel Integration: means of groups of adjacent states, joined along channels."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.request import Connector
from dcsurgery.features import (
    FeatureBlock,
    FeatureLayout,
    dci_blocks,
    distinct_layers,
    split_evenly,
)


def layout(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Return the blocks of arXiv 2405.13800 eq. 3-4, or the means of the given groups of states.

    Raises PlanError for states the tower does not have.
    """
    layers = asked.states
    if layers is None:
        blocks = dci_blocks(anatomy.feature_layer, asked.groups, anatomy.first_state)
        return FeatureLayout("dci", blocks)
    depth = anatomy.tower.depth
    layers = tuple(distinct_layers(group, depth) for group in layers)
    only = layers[0]
    # A single state is one group, whatever number is usual.
    if len(layers) == 1 and asked.groups > 1 and len(only) > 1:
        layers = tuple(only[run.start : run.stop] for run in split_evenly(len(only), asked.groups))
    return FeatureLayout("dci", tuple(map(FeatureBlock, layers)))
