"""One connector request, checked alike at every door: Python, command line, recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

import dcsurgery
from dcsurgery.cli.main import app
from dcsurgery.connectors.request import Connector, ConnectorKeywords
from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.recipes.catalog import find_recipe, read_yaml
from dcsurgery.recipes.schema import parse_recipe
from dcsurgery.surgery.convert import plan_conversion

# The field, a value that cannot be meant, and what the hint says about it.
WRONG: list[tuple[str, Any, str]] = [
    ("connector", "dense", "dci, sci, sti or mix"),
    ("groups", 0, "1 or more"),
    ("groups", -2, "1 or more"),
    ("groups", "many", "whole number"),
    ("pool", 0, "1 (all image tokens)"),
    ("pool", 3, "1 (all image tokens)"),
    ("seed", -1, "0 or more"),
    ("init", "zero", "preserve or paper"),
    ("init", "published", "preserve or paper"),
    ("form", "onnx", "delta"),
    ("layers", "a-b", "7,15"),
    ("layers", "", "7,15"),
    ("layers", (), "7,15"),
    ("layers", ((7,), ()), "7,15"),
    ("layers", (7.5,), "7,15"),
    ("layers", ("7", "15a"), "7,15"),
    ("layers", 7.5, "7,15"),
    ("norm", True, "--connector sci"),
]
RIGHT: list[dict[str, Any]] = [
    {},
    {"connector": "sci", "layers": "0,2"},
    {"connector": "sci", "layers": (2, 0), "norm": True},
    {"layers": [[0, 1], [2]], "form": "delta"},
    {"layers": -1},
    {"layers": 3, "connector": "sci"},
    {"connector": "mix", "groups": 1, "pool": 2, "seed": 4},
    {"init": "paper", "seed": 3, "form": "stock"},
]


def by_class(model: Path, output: Path, **options: Any) -> None:
    Connector.of(**options)


def by_python(model: Path, output: Path, **options: Any) -> None:
    dcsurgery.convert(model, output, **options)


def by_dry_run(model: Path, output: Path, **options: Any) -> None:
    plan_conversion(model, output, **options)


def by_training(model: Path, output: Path, **options: Any) -> None:
    dcsurgery.finetune(model, "rows.json", output, **{"connector": "dci", **options})


def by_recipe(model: Path, output: Path, **options: Any) -> None:
    values = read_yaml(find_recipe("tiny"))
    values["connector"] = {
        "kind" if name == "connector" else name: options[name] for name in options
    }
    parse_recipe(values, "mine.yaml")


@pytest.mark.parametrize(("name", "value", "hint"), WRONG)
@pytest.mark.parametrize("door", [by_class, by_python, by_dry_run, by_training, by_recipe])
def test_what_cannot_be_meant_is_refused_alike(
    door: Callable[..., None], name: str, value: Any, hint: str, tiny_clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(DcSurgeryError) as caught:
        door(tiny_clip, tmp_path / "out", **{name: value})
    said = f"{caught.value.message} {caught.value.hint}"
    # Of types and choices pydantic speaks first.
    assert hint in said or (door is by_recipe and "input should be" in said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "hint"), [wrong for wrong in WRONG if not isinstance(wrong[1], tuple | float)]
)
@pytest.mark.parametrize("command", ["convert", "finetune --connector dci --data rows.json"])
def test_the_command_line_refuses_the_same(
    command: str, name: str, value: Any, hint: str, tiny_clip: Path, tmp_path: Path
) -> None:
    words = [f"--{name}"] if value is True else [f"--{name}", str(value)]
    first, *rest = command.split()
    out = str(tmp_path / "out")
    found = CliRunner().invoke(app, [first, str(tiny_clip), *rest, "-o", out, *words])
    # A seed of finetune is the training's too, and a number that is none is a usage error.
    assert found.exit_code == (2 if value == "many" else 1)
    assert value == "many" or name == "seed" or hint in " ".join(found.stderr.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", RIGHT)
def test_class_kind_and_keywords_plan_the_same(options: dict[str, Any], tiny_clip: Path) -> None:
    asked = Connector.of(**options)
    keywords = {name: value for name, value in options.items() if name != "connector"}
    plans = [
        plan_conversion(tiny_clip, connector=asked).plan,
        plan_conversion(tiny_clip, **options).plan,
        plan_conversion(tiny_clip, connector=Connector(asked.kind), **keywords).plan,
    ]
    assert plans[0] == plans[1] == plans[2]
    assert (
        TypeAdapter(Connector).validate_python(TypeAdapter(Connector).dump_python(asked)) == asked
    )


def test_keywords_and_fields_are_the_same_names() -> None:
    names = [field.name for field in fields(Connector)]
    assert names == ["kind", *ConnectorKeywords.__annotations__]


@pytest.mark.parametrize("function", ["convert", "finetune"])
def test_an_unknown_keyword_is_a_type_error(function: str, tiny_clip: Path, tmp_path: Path) -> None:
    arguments = [tiny_clip, tmp_path / "out"] + [tmp_path / "tuned"] * (function == "finetune")
    with pytest.raises(TypeError, match="gruops"):
        getattr(dcsurgery, function)(*arguments, connector="dci", gruops=3)
    with pytest.raises(ValidationError, match="gruops"):
        TypeAdapter(Connector).validate_python({"gruops": 3})


def test_finetune_takes_options_of_a_connector_that_it_names(tiny_clip: Path) -> None:
    with pytest.raises(RequestError, match="groups is said of no connector"):
        dcsurgery.finetune(tiny_clip, "rows.json", "out", groups=3)
    with pytest.raises(RequestError) as caught, pytest.warns(DeprecationWarning, match="Connector"):
        dcsurgery.finetune(tiny_clip, "rows.json", "out", connector={"connector": "dense"})
    assert "dci" in caught.value.hint


def test_no_training_ends_in_the_reference_form(tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not in the reference's"):
        by_training(tiny_clip, tmp_path / "out", form="reference")
    with pytest.raises(RequestError, match=r"connector\.form"):
        by_recipe(tiny_clip, tmp_path / "out", form="reference")
