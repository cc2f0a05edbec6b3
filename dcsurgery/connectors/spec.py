"""What the user asks for: a connector, before any model is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dcsurgery.architectures import Form

Layers = tuple[tuple[int, ...], ...]
# "published": the values are those of a checkpoint that has its connector already.
Init = Literal["preserve", "paper", "published"]


@dataclass(frozen=True)
class ConnectorSpec:
    """A request: `layers` overrides the kind's rule, without `form` the family chooses.

    `probe` is a file of `dcsurgery probe` that says which, once the model is known.
    `norm` puts a LayerNorm on every extra state (sci); `pool` 2 halves the sides of the token grid
    after the projector.
    """

    kind: str = "dci"
    groups: int = 2
    layers: Layers | None = None
    init: Init = "preserve"
    seed: int = 0
    form: Form | None = None
    norm: bool = False
    pool: int = 1
    probe: str | None = None
