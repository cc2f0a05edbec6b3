"""Learned mixture: DCI's groups, but every state of a group has a weight that is learned."""

from __future__ import annotations

from dataclasses import replace

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors import dci
from dcsurgery.connectors.request import Connector
from dcsurgery.features import FeatureLayout


def layout(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Return DCI's blocks with learned weights: sum_l softmax(a)_l V_l instead of the mean.

    Raises PlanError for states the tower does not have.
    """
    return replace(dci.layout(anatomy, asked), kind="mix", mixed=True)
