"""Sparse Channel Integration: single hidden states, joined along channels."""

from __future__ import annotations

from dcsurgery.errors import PlanError
from dcsurgery.features import FeatureBlock, FeatureLayout, distinct_layers, sci_layers

SUMMARY = "single hidden states, joined along channels"


def layout(
    feature_layer: int, depth: int, groups: int, layers: tuple[tuple[int, ...], ...] | None
) -> FeatureLayout:
    """Return the states of arXiv 2405.13800 eq. 2, or the given ones; `groups` has no meaning here.

    Raises PlanError for states the tower does not have, and for groups.
    """
    if layers is not None and len(layers) > 1:
        raise PlanError(
            "sci joins single hidden states and has no groups",
            hint="write --layers 7,15, or use --connector dci for groups",
        )
    wanted = layers[0] if layers else sci_layers(feature_layer)
    if not wanted:
        raise PlanError(
            f"feature layer {feature_layer} leaves no shallower hidden state to add",
            hint="name the states yourself: --layers 0,1",
        )
    # The given order is kept: column order is part of what a trained matrix means.
    distinct_layers(wanted, depth)
    return FeatureLayout("sci", tuple(FeatureBlock(distinct_layers((i,), depth)) for i in wanted))
