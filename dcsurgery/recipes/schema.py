"""What a recipe file may say: the words of the command line, typed; unknown keys are refused."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dcsurgery.data.pictures import Orientation
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.eval_report import Metric
from dcsurgery.training.settings import TrainingSettings

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


class Connector(_Section):
    """The options of `dcsurgery convert`; `kind` is --connector."""

    kind: str = "dci"
    groups: int = 2
    layers: str | None = None
    norm: bool = False
    pool: int = 1
    init: Literal["preserve", "paper"] = "preserve"
    seed: int = 0
    form: Literal["stock", "delta"] | None = None


class Verify(_Section):
    """The options of `dcsurgery verify`, which runs after every step that writes a model."""

    images: list[str] = []
    orientation: Orientation = "exif"
    logits: bool = False
    deep: bool = False


class Finetune(TrainingSettings):
    """One stage: where the data is, and the options of `dcsurgery finetune`."""

    data: str
    images: str | None = None
    split: str = "train"
    columns: dict[str, str] = Field(default={})

    def settings(self) -> TrainingSettings:
        """Return the stage without its data, for finetune_connector."""
        return TrainingSettings(**self.model_dump(exclude={"data", "images", "split", "columns"}))


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
    max_bad: float = Field(default=0.01, ge=0, le=1)
    prompt: Literal["plain", "v1"] | None = None
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


def parse_recipe(values: Any, where: str) -> Recipe:
    """Return a checked recipe. Raises RequestError that names the key and what was meant."""
    if not isinstance(values, dict):
        raise RequestError(f"{where} is not a mapping of keys", hint="dcsurgery recipe show tiny")
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RequestError(f"{where}: {place}: {_said(first)}", hint=_meant(first)) from None
    names = {step.name for step in recipe.eval}
    for row in recipe.expected:
        if row.eval is not None and row.eval not in names:
            raise RequestError(
                f"{where}: expected.{row.benchmark} is measured by {row.eval!r}, which is no eval",
                hint=f"eval steps: {', '.join(sorted(names)) or 'none'}",
            )
    return recipe


def _said(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such key"
    given = "" if problem["type"] == "missing" else f", got {str(problem['input'])[:60]!r}"
    return f"{problem['msg'][0].lower()}{problem['msg'][1:]}{given}"


def _meant(problem: Any) -> str:
    keys = _keys_at(problem["loc"][:-1])
    close = difflib.get_close_matches(str(problem["loc"][-1]), keys, n=1, cutoff=0.5)
    if problem["type"] == "extra_forbidden" and close:
        return f"did you mean {close[0]}?"
    if problem["type"] == "extra_forbidden" and keys:
        return f"keys: {', '.join(sorted(keys))}"
    return "dcsurgery recipe show NAME prints a recipe that is right"


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The keys a section knows; list positions in the location do not count."""
    sections: dict[tuple[str, ...], type[BaseModel]] = {
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
    found = sections.get(tuple(part for part in location if isinstance(part, str)))
    return [] if found is None else list(found.model_fields)
