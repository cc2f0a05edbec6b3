"""Connectors are data: each kind turns a feature layer into a FeatureLayout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dcsurgery.connectors import dci, sci
from dcsurgery.errors import RequestError
from dcsurgery.features import FeatureLayout

Layers = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ConnectorKind:
    """`layout(feature_layer, depth, groups, layers)` builds the layout; `summary` is one line."""

    name: str
    summary: str
    layout: Callable[[int, int, int, Layers | None], FeatureLayout]


KINDS = {
    kind.name: kind
    for kind in (
        ConnectorKind("dci", dci.SUMMARY, dci.layout),
        ConnectorKind("sci", sci.SUMMARY, sci.layout),
    )
}


def find_kind(name: str) -> ConnectorKind:
    """Return a connector kind by name. Raises RequestError for an unknown one."""
    if name not in KINDS:
        raise RequestError(
            f"connector {name!r} does not exist", hint=f"choose one of {', '.join(KINDS)}"
        )
    return KINDS[name]
