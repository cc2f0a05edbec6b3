"""Connectors are data: each kind turns an anatomy and a request into a FeatureLayout."""

from __future__ import annotations

from dataclasses import replace

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors import kinds
from dcsurgery.connectors.request import KINDS, Connector
from dcsurgery.features import FeatureLayout

__all__ = ["KINDS", "Connector", "connector_shapes", "make_layout"]

LAYOUTS = {"dci": kinds.dci, "sci": kinds.sci, "sti": kinds.sti, "mix": kinds.mix}


def make_layout(anatomy: Anatomy, asked: Connector) -> FeatureLayout:
    """Return the layout a connector means for this anatomy. Raises PlanError."""
    return replace(LAYOUTS[asked.kind](anatomy, asked), pool=asked.pool)


def connector_shapes(anatomy: Anatomy, layout: FeatureLayout) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor a connector has, by its name in it.

    "weight" is D [rows of all first matrices, G * feature width], in the projector's dtype; the
    others are fp32: "mix" one logit per state, blocks one after another; "norm_weight" and
    "norm_bias" [G, C]. Connectors along tokens have none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    count = len(layout.blocks)
    if layout.axis == "channel":
        shapes["weight"] = (anatomy.projector.out_features, anatomy.feature_width * count)
    if layout.mixed:
        shapes["mix"] = (sum(len(block.layers) for block in layout.blocks),)
    if layout.normed:
        shapes["norm_weight"] = shapes["norm_bias"] = (count, anatomy.tower.width)
    return shapes
