"""Connectors are data: each kind turns an anatomy and a request into a FeatureLayout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors import dci, mix, sci, sti
from dcsurgery.connectors.spec import ConnectorSpec
from dcsurgery.errors import RequestError
from dcsurgery.features import FeatureLayout

POOLS = (1, 2)


@dataclass(frozen=True)
class ConnectorKind:
    """`layout(anatomy, spec)` builds the layout; `summary` is one line."""

    name: str
    summary: str
    layout: Callable[[Anatomy, ConnectorSpec], FeatureLayout]


KINDS = {
    kind.name: kind
    for kind in (
        ConnectorKind("dci", dci.SUMMARY, dci.layout),
        ConnectorKind("sci", sci.SUMMARY, sci.layout),
        ConnectorKind("sti", sti.SUMMARY, sti.layout),
        ConnectorKind("mix", mix.SUMMARY, mix.layout),
    )
}


def find_kind(name: str) -> ConnectorKind:
    """Return a connector kind by name. Raises RequestError for an unknown one."""
    if name not in KINDS:
        raise RequestError(
            f"connector {name!r} does not exist", hint=f"choose one of {', '.join(KINDS)}"
        )
    return KINDS[name]


def make_layout(anatomy: Anatomy, spec: ConnectorSpec) -> FeatureLayout:
    """Return the layout a spec means for this anatomy. Raises PlanError or RequestError."""
    kind = find_kind(spec.kind)
    if spec.pool not in POOLS:
        raise RequestError(
            f"pool {spec.pool} does not exist", hint="choose 1 (all image tokens) or 2 (a quarter)"
        )
    if spec.norm and spec.kind != "sci":
        raise RequestError(
            f"{spec.kind} has no norm variant", hint="use --norm with --connector sci"
        )
    return replace(kind.layout(anatomy, spec), pool=spec.pool)


def connector_shapes(anatomy: Anatomy, layout: FeatureLayout) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor a connector has, by its name in it.

    "weight" is D [rows of all first matrices, G * feature width], in the projector's dtype; the
    others are fp32: "mix" one logit per state, blocks one after another; "norm_weight" and
    "norm_bias" [G, C]. Along tokens there is none.
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
