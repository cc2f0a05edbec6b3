"""`--layers @probe.json`: the hidden states that a probe of this very model recommends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError, RequestError
from dcsurgery.surgery.plan_file import BaseRecord

Block = Annotated[list[int], Field(min_length=1)]
# Connectors that join single states and take them as one list.
SINGLE = ("sci", "sti")


class Recommended(BaseModel):
    """What a probe says to do: the blocks of states to add, none where it says not to operate."""

    model_config = ConfigDict(frozen=True)

    operate: bool
    layers: str | None
    blocks: list[Block]


class ProbeAnswer(BaseModel):
    """The part of a probe's JSON that a conversion needs."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1]
    verdict: str
    base: BaseRecord
    recommended: Recommended


def with_probed_layers(asked: Connector, base: BaseRecord) -> Connector:
    """Return a request with the layers of the probe it names; one that names none as it is.

    Raises RequestError for a file that is not a probe, PlanError for a probe of another model than
    `base` or one that advises against an operation.
    """
    if asked.probe is None:
        return asked
    answer = read_answer(Path(asked.probe))
    if (answer.base.config_sha256, answer.base.files) != (base.config_sha256, base.files):
        raise PlanError(
            f"{asked.probe} is the probe of another model, {answer.base.id[:200]}",
            hint=f"probe this one: dcsurgery probe {base.id} --data DATA -o probe.json",
        )
    if not answer.recommended.operate:
        raise PlanError(
            f"{asked.probe} says: {answer.verdict[:300]}",
            hint="to operate all the same, name the hidden states: --layers 0,1",
        )
    layers = tuple(tuple(block) for block in answer.recommended.blocks)
    if asked.kind in SINGLE and all(len(block) == 1 for block in layers):
        layers = (tuple(block[0] for block in layers),)
    return replace(asked, layers=layers)


def read_answer(path: Path) -> ProbeAnswer:
    """Read what `dcsurgery probe -o FILE` wrote. Raises RequestError."""
    hint = "`dcsurgery probe MODEL --data DATA -o probe.json` writes one"
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait for ever
            raise RequestError(f"{path} is not a file", hint=hint)
        return ProbeAnswer.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "its text"
        raise RequestError(f"{path} is not a probe's answer: see {where}", hint=hint) from None
