"""What a user asks for: a connector, before any model is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Annotated, Any, Literal, TypedDict, Unpack, cast

from dcsurgery.architectures import Form
from dcsurgery.errors import PlanError, RequestError
from dcsurgery.features import parse_layers
from dcsurgery.fields import Told, check_fields

Kind = Literal["dci", "sci", "sti", "mix"]
Groups = tuple[tuple[int, ...], ...]
Layers = int | str | Sequence[int] | Sequence[Sequence[int]]

PROBE_MARK = "@"

# Every kind in one line.
KINDS: dict[str, str] = {
    "dci": "means of adjacent groups of hidden states, joined along channels",
    "sci": "single hidden states, joined along channels",
    "sti": "pooled tokens of single hidden states, appended to the image tokens",
    "mix": "dci whose groups learn a weight per hidden state (softmax, starting at the mean)",
}


class ConnectorKeywords(TypedDict, total=False):
    """The fields of Connector as keywords of convert, plan and finetune, which call it `connector`
    where it calls its kind.
    """

    groups: int
    layers: Layers | None
    norm: bool
    pool: int
    init: str
    seed: int
    form: str | None


@dataclass(frozen=True)
class Connector:
    """A connector and how it is written: the options of `dcsurgery convert`.

    `layers` overrides the kind's own rule: text as on the command line ("@FILE" is what a probe
    found, until a plan is made), states, or groups of states; without `form` the family chooses.
    Raises RequestError (PlanError for a text of layers) for what cannot be meant in any model.
    """

    kind: Annotated[
        Kind,
        Told("; ".join(f"{kind}: {text}" for kind, text in KINDS.items()) + ".", "KIND",
             name="connector"),
    ] = "dci"  # fmt: skip
    groups: Annotated[int, Told("Number of groups of hidden states (dci, mix).", least=1)] = 2
    layers: Annotated[
        Layers | None,
        Told(
            "Hidden states to read, instead of the connector's own rule: states like 7,15, runs "
            "like 0-11, groups like '0-11;12-23'. State 0 is the embeddings, state i the output of "
            "block i; -1 is the last. @probe.json: those that `dcsurgery probe` found.",
            "LAYERS",
        ),
    ] = None
    norm: Annotated[bool, Told("Put a LayerNorm on every state that is added (sci).")] = False
    pool: Annotated[
        Literal[1, 2],
        Told(
            "2 halves both sides of the token grid after the projector: a quarter of the image "
            "tokens. 1 keeps them all.",
            hint="choose 1 (all image tokens) or 2 (a quarter)",
        ),
    ] = 1
    init: Annotated[
        Literal["preserve", "paper"],
        Told(
            "preserve: the new matrix is zero, the model computes what it did. paper: connector "
            "and projector are drawn at random, to be trained.",
            "INIT",
        ),
    ] = "preserve"
    seed: Annotated[int, Told("Seed of --init paper, 0 or more.", least=0)] = 0
    form: Annotated[
        Form | None,
        Told(
            "stock: a complete checkpoint that plain transformers loads. delta: the connector "
            "alone, megabytes; dcsurgery loads it with its base. portable: a complete checkpoint "
            "with the connector's code inside, for plain transformers with trust_remote_code and "
            "for servers. reference: what the paper's own code (HJYao00/DenseConnector) saves and "
            "loads. Default: stock where the model's config has words for it, else delta.",
            "FORM",
        ),
    ] = None

    # pydantic, which recipes are read with, takes this class as it is.
    __pydantic_config__ = {"extra": "forbid", "coerce_numbers_to_str": True}  # noqa: RUF012

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _as_groups(self.layers))
        check_fields(self)
        if self.norm and self.kind != "sci":
            raise RequestError(
                f"{self.kind} has no norm variant", hint="use --norm with --connector sci"
            )

    @classmethod
    def of(
        cls, connector: Connector | str | None = None, **options: Unpack[ConnectorKeywords]
    ) -> Connector:
        """Return a connector, or the kind of one, with `options`; None is dci.

        Raises what Connector raises.
        """
        values = cast("dict[str, Any]", options)
        if isinstance(connector, Connector):
            return replace(connector, **values)
        return cls("dci" if connector is None else cast(Kind, connector), **values)

    @property
    def states(self) -> Groups | None:
        """`layers` as groups of hidden states."""
        return cast("Groups | None", self.layers)

    @property
    def probe(self) -> str | None:
        """The file of a probe that says which layers, once the model is known."""
        layers = cast("Groups | str | None", self.layers)
        return layers.removeprefix(PROBE_MARK) if isinstance(layers, str) else None


def _as_groups(layers: Any) -> Groups | str | None:
    if layers is None or (isinstance(layers, str) and layers.startswith(PROBE_MARK)):
        return layers
    if isinstance(layers, str):
        return parse_layers(layers)
    if isinstance(layers, int) and not isinstance(layers, bool):
        return ((layers,),)
    try:
        flat = all(isinstance(item, int) for item in layers)
        groups = tuple(tuple(map(index, group)) for group in ([layers] if flat else layers))
    except TypeError:
        groups = ()
    if not groups or not all(groups):
        raise PlanError(
            f"layers {layers!r} are not hidden states",
            hint="write states like 7,15, or groups of states like 0-11;12-23",
        )
    return groups
