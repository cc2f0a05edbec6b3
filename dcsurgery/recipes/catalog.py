"""Find recipes, read their YAML, change fields by --set."""

from __future__ import annotations

import copy
import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from dcsurgery.errors import CheckpointNotFoundError, RequestError
from dcsurgery.recipes.schema import Recipe, parse_recipe

HERE = Path(__file__).parent


def recipe_folder() -> Path:
    """The shipped YAML files: inside the wheel, or at the top of a source checkout."""
    inside = HERE / "files"
    return inside if inside.is_dir() else HERE.parent.parent / "recipes"


def shipped() -> dict[str, Path]:
    """Return every shipped recipe's file by name, sorted."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(name_or_file: str) -> Path:
    """Return the file of a shipped name, or of a path. Raises RequestError, with a suggestion."""
    known = shipped()
    if name_or_file in known:
        return known[name_or_file]
    path = Path(name_or_file)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml"):
        raise CheckpointNotFoundError(f"there is no file {path}", hint="dcsurgery recipe list")
    close = difflib.get_close_matches(name_or_file, known, n=3, cutoff=0.4)
    raise RequestError(
        f"there is no recipe {name_or_file!r}",
        hint=f"did you mean {' or '.join(close)}?" if close else "dcsurgery recipe list",
    )


def read_text(path: Path) -> str:
    """Return the text of a recipe's file. Raises RequestError when there is none to read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}", hint="check the file") from None


def read_yaml(path: Path) -> Any:
    """Return the values of a YAML file. Raises RequestError with the line that is wrong."""
    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise RequestError(f"{path}{line}: {problem}", hint="correct the YAML") from None
    except ValueError as error:  # a date that is none
        raise RequestError(f"{path}: {error}", hint="correct the YAML") from None


def load_recipe(name_or_file: str, changes: tuple[str, ...] = ()) -> Recipe:
    """Read, change and check a recipe. Raises RequestError or CheckpointNotFoundError."""
    path = find_recipe(name_or_file)
    values = read_yaml(path)
    return parse_recipe(change_fields(values, changes), str(name_or_file))


def change_fields(values: Any, changes: tuple[str, ...]) -> Any:
    """Return recipe values with every "a.b=value" applied; values are YAML.

    `finetune.lr` means every stage, `finetune.0.lr` the first. Raises RequestError.
    """
    changed = copy.deepcopy(values)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise RequestError(f"--set {change} has no value", hint="write --set finetune.lr=1e-4")
        set_field(changed, key.strip(), _scalar(text))
    return changed


def _scalar(text: str) -> Any:
    """YAML's value; 1e-4 is a number (YAML 1.1 wants 1.0e-4)."""
    if "e" in text.lower():
        with suppress(ValueError):
            return float(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # YAML's dates raise ValueError
        return text


def set_field(values: Any, key: str, value: Any) -> None:
    """Set a dotted key in nested mappings and lists. Raises RequestError for a wrong place."""
    first, _, rest = key.partition(".")
    if isinstance(values, list) and not first.isdecimal():
        for item in values:
            set_field(item, key, value)
        return
    place: Any = first
    if isinstance(values, list):
        place = int(first)
        if place >= len(values):
            raise RequestError(
                f"--set {key}: there are {len(values)} entries", hint="the first is number 0"
            )
    elif not isinstance(values, dict):
        raise RequestError(f"--set {key}: nothing is there", hint="dcsurgery recipe show NAME")
    if not rest:
        values[place] = value
        return
    if isinstance(values, dict) and values.get(place) is None:
        values[place] = {}
    set_field(values[place], rest, value)
