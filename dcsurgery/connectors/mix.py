"""Learned mixture: DCI's groups, but every state of a group has a weight that is learned."""

from __future__ import annotations

from dataclasses import replace

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors import dci
from dcsurgery.connectors.spec import ConnectorSpec
from dcsurgery.features import FeatureLayout

SUMMARY = "dci whose groups learn a weight per hidden state (softmax, starting at the mean)"


def layout(anatomy: Anatomy, spec: ConnectorSpec) -> FeatureLayout:
    """Return DCI's blocks with learned weights: sum_l softmax(a)_l V_l instead of the mean.

    Raises PlanError for states the tower does not have.
    """
    return replace(dci.layout(anatomy, spec), kind="mix", mixed=True)
