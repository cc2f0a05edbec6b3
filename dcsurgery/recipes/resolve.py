"""What a recipe starts from, pinned: the base's commit and headers, the digests of the data."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dcsurgery import __version__
from dcsurgery.errors import CheckpointNotFoundError, RequestError
from dcsurgery.originals import open_model, told
from dcsurgery.recipes.places import data_place, needed, parts, reads
from dcsurgery.recipes.schema import Recipe
from dcsurgery.recipes.steps import Step
from dcsurgery.surgery.plan import describe_base

PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub")


def pin_base(recipe: Recipe, data: Path) -> dict[str, Any]:
    """Return the record of a recipe's base: id, commit or content, digests of config and headers.

    Raises CheckpointNotFoundError when it is neither a folder nor reachable on the Hub.
    """
    from dcsurgery.data.rows import data_digest

    hints = told(tower_places(recipe, data))
    checkpoint = open_model(base_place(recipe, data), recipe.base.revision, hints=hints)
    record = describe_base(checkpoint).model_dump(
        mode="json", exclude={"folder", "revision", "template"}
    )
    # Not where folders are today: the same files elsewhere are the same base.
    commits = {name: tower["commit"] for name, tower in record["towers"].items()}
    folder = checkpoint.ref.folder
    # A folder has no commit that stands for its values.
    content = None if record["commit"] or folder is None else data_digest(folder)
    return {**record, "id": recipe.base.model, "towers": commits, "content": content}


def known_base(recipe: Recipe, data: Path, work: Path) -> dict[str, Any] | None:
    """Return the record of a base that is here, or was when a run in `work` used it; else None."""
    if Path(base_place(recipe, data)).is_dir():
        return pin_base(recipe, data)
    try:
        base: dict[str, Any] = json.loads((work / "report.json").read_bytes())["base"]
    except (OSError, ValueError, KeyError):
        return None
    return base if base.get("id") == recipe.base.model else None


def base_place(recipe: Recipe, data: Path) -> str:
    """Return the base's folder when there is one below the data folder, else its Hub id."""
    folder = data / recipe.base.model
    return str(folder) if folder.is_dir() else recipe.base.model


def tower_places(recipe: Recipe, data: Path) -> dict[str, str]:
    """Return where the towers of the base are: folders below the data folder, else as stated."""
    return {
        name: str(data / place) if (data / place).is_dir() else place
        for name, place in recipe.base.tower.items()
    }


def pin_data(steps: tuple[Step, ...], data: Path) -> dict[str, str]:
    """Return the digest of every data file the steps read, by its path in the recipe.

    Raises CheckpointNotFoundError that names the first one that is missing.
    """
    from dcsurgery.data.rows import data_digest

    found = {}
    for step in steps:
        for name in step.reads.values():
            if name not in found:
                found[name] = data_digest(data_place(name, data))
    return found


def missing(recipe: Recipe, steps: tuple[Step, ...], data: Path) -> list[str]:
    """Say what is not there yet: data files and image folders, with where they come from."""
    places = [part for step in steps for name in step.reads.values() for part in parts(name, data)]
    wanted = {step.name for step in steps}
    for name, section in recipe.sections().items():
        places += reads(section, data) if name in wanted else []
    gone = (place for place in places if not (data / place).exists())
    names = [name for place in gone for name in needed(place, recipe.needs)]
    return [
        f"{name} is not in {data}" + (f": {recipe.needs[name]}" if name in recipe.needs else "")
        for name in dict.fromkeys(names)
        if not (data / name).exists()
    ]


def require_data(recipe: Recipe, steps: tuple[Step, ...], data: Path) -> None:
    """Raise CheckpointNotFoundError when something the recipe reads is missing."""
    absent = missing(recipe, steps, data)
    if absent:
        raise CheckpointNotFoundError(
            "; ".join(absent[:3]),
            hint="fetch it, or name its folder with --data-dir; `recipe data` lists all of it",
        )


def installed() -> dict[str, str]:
    """Return the versions a run depends on."""
    found = {"dcsurgery": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def pinned(recipe: Recipe, lock: dict[str, Any], data: Path) -> Recipe:
    """Return a locked recipe with its base at the locked commit, whatever is newest today."""
    commit = lock["base"].get("commit")
    if commit is None or Path(base_place(recipe, data)).is_dir():
        return recipe
    base = recipe.base.model_copy(update={"revision": commit})
    return recipe.model_copy(update={"base": base})


def other_versions(lock: dict[str, Any]) -> list[str]:
    """Say which packages have another version than in the lock."""
    here = installed()
    return [
        f"{name} {here.get(name, 'absent')} (locked: {number})"
        for name, number in lock["versions"].items()
        if here.get(name) != number
    ]


def require_same(lock: dict[str, Any], base: dict[str, Any], data: dict[str, str]) -> None:
    """Compare with a lock. Raises RequestError that names what is another one today."""
    for key in ("commit", "config_sha256", "files", "towers", "content"):
        if lock["base"].get(key) != base.get(key):
            raise RequestError(
                f"the base {base['id']} is not the locked one: {key} differs",
                hint="fetch the locked commit, or run the recipe instead of its lock",
            )
    for name, digest in lock["data"].items():
        if data.get(name) != digest:
            raise RequestError(
                f"{name} is not the locked file: its SHA-256 differs",
                hint="fetch the same data, or run the recipe instead of its lock",
            )
