"""Sparse Token Integration: pooled tokens of single hidden states, appended to the patch tokens."""

from __future__ import annotations

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.request import Connector
from dcsurgery.connectors.sci import single_states
from dcsurgery.features import FeatureLayout

# The reference pools 8 raster-ordered tokens (AvgPool1d, kernel 8, stride 8).
STRIDE = 8


def layout(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Return the states of arXiv 2405.13800 eq. 1, or the given ones, pooled by 8 along tokens.

    Raises PlanError for states the tower does not have, and for groups.
    """
    return FeatureLayout("sti", single_states(anatomy, asked), axis="token", stride=STRIDE)
