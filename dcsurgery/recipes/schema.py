"""What a recipe file may say: the words of the command line, typed; unknown keys are refused."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dcsurgery.connectors.request import Connector
from dcsurgery.data.pictures import Orientation
from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.evaluation.eval_report import Metric
from dcsurgery.fields import percent, told_fields
from dcsurgery.training.settings import TrainingSettings

# pydantic's words for a key that there is not, in a model and in a dataclass.
NO_KEY = ("extra_forbidden", "unexpected_keyword_argument")
Percent = Annotated[float, BeforeValidator(percent)]
NAME = r"^[a-z0-9][a-z0-9._-]*$"


class _Section(BaseModel):
    # YAML reads `layers: 15` and `revision: 2024` as numbers.
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Base(_Section):
    """The model to operate on. `tower` says where the towers of an original checkpoint are."""

    model: str
    revision: str | None = None
    tower: dict[str, str] = {}


class Verify(_Section):
    """The options of `dcsurgery verify`, which runs after every step that writes a model."""

    images: list[str] = []
    orientation: Orientation = "exif"
    logits: bool = False
    deep: bool = False


@dataclass(frozen=True, kw_only=True)
class Finetune(TrainingSettings):
    """One stage: where the data is, and the options of `dcsurgery finetune`.

    `processes` train it, which share the model as `sharding` says; neither changes what is learnt.
    auto is what the reference's scripts take, where DeepSpeed is installed: launch.Launch.way.
    """

    data: str
    images: str | None = None
    split: str = "train"
    columns: dict[str, str] = field(default_factory=dict)
    processes: Annotated[int, Field(ge=1)] = 1
    sharding: Literal["auto", "none", "zero2", "zero3", "fsdp2"] = "auto"

    def settings(self) -> TrainingSettings:
        """Return the stage without its data, for finetune_connector."""
        return TrainingSettings(**{name: getattr(self, name) for name in told_fields(Finetune)})


class Eval(_Section):
    """The options of `dcsurgery eval`; the base is always measured beside the result."""

    name: str = Field(pattern=NAME)
    data: str
    images: str | None = None
    split: str = "test"
    columns: dict[str, str] = {}
    metric: Metric = "exact"
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    max_bad: Percent = 1.0
    prompt: Literal["auto", "plain", "v1"] = "auto"
    orientation: Orientation = "exif"
    dtype: str = "auto"
    seed: int = Field(default=0, ge=0)


class Export(_Section):
    """The options of `dcsurgery export`."""

    form: Literal["stock", "reference"] = "stock"
    keep_lora: bool = False


class Publish(_Section):
    """The options of `dcsurgery push`. A recipe without a `repo` publishes nothing."""

    repo: str | None = None
    private: bool = True
    revision: str | None = None
    create_pr: bool = False


class Expected(_Section):
    """A published number. `eval` names the step of this recipe that measures the same."""

    benchmark: str
    value: float
    tolerance: float = Field(ge=0)
    source: str
    eval: str | None = None
    task: str | None = None


class Cost(_Section):
    """What a whole run takes, estimated; `source` says from what."""

    gpu: str
    hours: float = Field(gt=0)
    disk_gb: float = Field(gt=0)
    source: str


class Smoke(_Section):
    """The tiny model that stands in for the base with --smoke: a writer of dcsurgery.tiny.

    `reference` is a connector it gets first, in the reference's own form. `always` is for recipes
    that have no other base.
    """

    model: str
    options: dict[str, Any] = {}
    reference: str | None = None
    always: bool = False


class Recipe(_Section):
    """A whole reproduction: convert, verify, finetune, eval, export, publish, in this order."""

    name: str = Field(pattern=NAME)
    title: str
    source: str
    needs: dict[str, str] = {}
    base: Base
    connector: Connector = Connector()
    verify: Verify | None = Verify()
    finetune: Annotated[list[Finetune], BeforeValidator(_as_list), Field(max_length=2)] = []
    eval: Annotated[list[Eval], BeforeValidator(_as_list)] = []
    export: Export | None = None
    publish: Publish | None = None
    expected: list[Expected] = []
    cost: Cost
    smoke: Smoke
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    def sections(self) -> dict[str, Finetune | Eval]:
        """Return what trains and what evaluates, by the name of its step."""
        stages = {f"finetune-{n}": stage for n, stage in enumerate(self.finetune, start=1)}
        return {**stages, **{f"eval-{item.name}": item for item in self.eval}}


def parse_recipe(values: Any, where: str) -> Recipe:
    """Return a checked recipe. Raises RequestError that names the key and what was meant."""
    if not isinstance(values, dict):
        raise RequestError(f"{where} is not a mapping of keys", hint="dcsurgery recipe show tiny")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, DcSurgeryError):
            raise RequestError(f"{where}: {place}: {cause.message}", hint=cause.hint) from None
        raise RequestError(f"{where}: {place}: {_said(first)}", hint=_meant(first)) from None
    except DcSurgeryError as error:  # layers that are none, or a norm that a kind has not
        raise RequestError(f"{where}: {error.message}", hint=error.hint) from None
    if recipe.connector.form == "reference":
        raise RequestError(
            f"{where}: connector.form: what comes after reads no reference form",
            hint="leave it out; export: {form: reference} writes it at the end",
        )
    names = {step.name for step in recipe.eval}
    for row in recipe.expected:
        if row.eval is not None and row.eval not in names:
            raise RequestError(
                f"{where}: expected.{row.benchmark} is measured by {row.eval!r}, which is no eval",
                hint=f"eval steps: {', '.join(sorted(names)) or 'none'}",
            )
    return recipe


def _said(problem: Any) -> str:
    if problem["type"] in NO_KEY:
        return "there is no such key"
    given = "" if problem["type"] == "missing" else f", got {str(problem['input'])[:60]!r}"
    said = problem["msg"].removeprefix("Value error, ")
    return f"{said[0].lower()}{said[1:]}{given}"


def _meant(problem: Any) -> str:
    keys = _keys_at(problem["loc"][:-1])
    close = difflib.get_close_matches(str(problem["loc"][-1]), keys, n=1, cutoff=0.5)
    if problem["type"] in NO_KEY and close:
        return f"did you mean {close[0]}?"
    if problem["type"] in NO_KEY and keys:
        return f"keys: {', '.join(sorted(keys))}"
    return "`dcsurgery recipe show NAME` prints a recipe that is right"


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The keys a section knows; list positions in the location do not count."""
    sections: dict[tuple[str, ...], type] = {
        (): Recipe,
        ("base",): Base,
        ("connector",): Connector,
        ("verify",): Verify,
        ("finetune",): Finetune,
        ("eval",): Eval,
        ("export",): Export,
        ("publish",): Publish,
        ("expected",): Expected,
        ("cost",): Cost,
        ("smoke",): Smoke,
    }
    section = sections.get(tuple(part for part in location if isinstance(part, str)))
    return [*getattr(section, "__dataclass_fields__", ()), *getattr(section, "model_fields", ())]
