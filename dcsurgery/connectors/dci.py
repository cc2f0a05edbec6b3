"""Dense Channel Integration: means of groups of adjacent states, joined along channels."""

from __future__ import annotations

from dcsurgery.features import (
    FeatureBlock,
    FeatureLayout,
    dci_blocks,
    distinct_layers,
    split_evenly,
)

SUMMARY = "means of adjacent groups of hidden states, joined along channels"


def layout(
    feature_layer: int, depth: int, groups: int, layers: tuple[tuple[int, ...], ...] | None
) -> FeatureLayout:
    """Return the blocks of arXiv 2405.13800 eq. 3-4, or the means of the given groups of states.

    Raises PlanError for states the tower does not have.
    """
    if layers is None:
        return FeatureLayout("dci", dci_blocks(feature_layer, groups))
    if len(layers) == 1 and groups > 1:
        only = layers[0]
        layers = tuple(only[run.start : run.stop] for run in split_evenly(len(only), groups))
    return FeatureLayout(
        "dci", tuple(FeatureBlock(distinct_layers(group, depth)) for group in layers)
    )
