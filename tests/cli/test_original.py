"""Originals on the command line: what they are is said, where the tower is can be."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest

import dcsurgery
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from dcsurgery.tiny.tokenizer import write_tokenizer

from .conftest import Run


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("originals")
    sizes = OriginalSizes()
    tower = write_tower(folder / "clip", sizes, pickled=True)
    base = write_original_llava(
        folder / "llava", sizes, "ckpt/gone", inside=False, pickled=True, connector="dci"
    )
    return {"model": base, "tower": tower}


def test_inspect_says_what_an_original_is(run: Run, places: dict[str, Path]) -> None:
    named = f"gone={places['tower']}"
    text = run("inspect", places["model"], "--tower", named).stdout
    for words in (
        "published Dense Connector (class LlavaLlamaForCausalLM)",
        "dci, trained: the surgery is done",
        "LlavaForConditionalGeneration (architecture llava)",
        "padded to 384",
    ):
        assert words in text
    found = json.loads(run("inspect", places["model"], "--tower", named, "--json").stdout)
    assert found["original"]["towers"] == {"ckpt/gone": str(places["tower"])}
    assert [offer["kind"] for offer in found["offers"]] == ["dci"]


def test_a_dead_tower_path_is_an_expected_failure(run: Run, places: dict[str, Path]) -> None:
    failed = run("inspect", places["model"])
    assert failed.exit_code == 1 and "--tower gone=PATH" in failed.stderr


@pytest.mark.parametrize("value", ["gone", "=x", "gone="])
def test_a_tower_option_without_both_sides_is_a_usage_error(
    run: Run, places: dict[str, Path], value: str
) -> None:
    failed = run("inspect", places["model"], "--tower", value)
    assert failed.exit_code == 2 and "NAME=PATH" in failed.stderr


def test_convert_writes_every_form(run: Run, places: dict[str, Path], tmp_path: Path) -> None:
    named = f"gone={places['tower']}"
    for form in ("stock", "delta", "reference"):
        options = ("--tower", named, "--form", form)
        planned = run("convert", places["model"], *options, "--dry-run")
        assert f"{form} form" in planned.stdout and not (tmp_path / form).exists()
        done = run("convert", places["model"], "-o", tmp_path / form, *options)
        assert done.exit_code == 0, done.stderr
        after = "inspect" if form == "reference" else "verify"
        assert f"dcsurgery {after} {tmp_path / form}" in done.stderr
    assert not (tmp_path / "reference" / "dense_connector").exists()


OPTIONS = {"--tower": "towers", "--template": "template"}


@pytest.mark.parametrize("command", ["inspect", "verify", "ask", "eval"])
def test_python_takes_towers_and_templates_where_the_command_does(run: Run, command: str) -> None:
    names = inspect.signature(getattr(dcsurgery, command.replace("eval", "evaluate"))).parameters
    words = run(command, "--help").stdout.split()
    assert {name for option, name in OPTIONS.items() if option in words} == {
        name for name in OPTIONS.values() if name in names
    }


def test_python_asks_an_original_whose_tower_is_elsewhere(
    places: dict[str, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(places["model"], tmp_path / "llava")
    write_tokenizer(model, ())
    asked = {"max_new_tokens": 2, "template": "v1", "device": "cpu"}
    with pytest.raises(dcsurgery.errors.DcSurgeryError, match="ckpt/gone"):
        dcsurgery.ask(model, "what?", **asked)
    towers = {"ckpt/gone": str(places["tower"])}
    assert dcsurgery.ask(model, "what?", towers=towers, **asked).model == str(model)
