"""Sparse Channel Integration: single hidden states, joined along channels."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.features import FeatureBlock, FeatureLayout, distinct_layers, sci_layers


def single_states(anatomy: Anatomy, asked: Connector) -> tuple[FeatureBlock, ...]:
    """Return one block per state: the given ones, or the kind's rule. Raises PlanError."""
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


def layout(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Return the states of arXiv 2405.13800 eq. 2, or the given ones; groups have no meaning here.

    With `norm` every extra state passes a LayerNorm of its own before the new matrix, as in
    ViP-LLaVA. Raises PlanError for states the tower does not have, and for groups.
    """
    return FeatureLayout("sci", single_states(anatomy, asked), normed=asked.norm)
