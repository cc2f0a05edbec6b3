"""recipe.lock.yaml: everything a run depended on, so that it can be repeated exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dcsurgery.errors import RequestError
from dcsurgery.recipes.stamps import Stamp, merged_versions

LOCK_FILE = "recipe.lock.yaml"
HEADER = """\
# What a run depended on. Replay it: dcsurgery recipe run recipe.lock.yaml --data-dir DATA
"""


class Lock(BaseModel):
    """The file's keys; `versions` are those that the steps ran with, `outputs` SHA-256."""

    model_config = ConfigDict(extra="forbid")

    lock_version: Literal[1]
    recipe: dict[str, Any]
    smoke: bool
    base: dict[str, Any]
    data: dict[str, str]
    versions: dict[str, str]
    outputs: dict[str, dict[str, str]]


def is_lock(values: Any) -> bool:
    """Return whether YAML values are a lock rather than a recipe."""
    return isinstance(values, dict) and "lock_version" in values


def check_lock(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a lock whose keys are all there. Raises RequestError."""
    try:
        return Lock.model_validate(values).model_dump()
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise RequestError(
            f"{where} is not a lock this version can read: {place} is wrong",
            hint="run the recipe to write a new one",
        ) from None


def write_lock(
    work: Path,
    recipe: dict[str, Any],
    smoke: bool,
    base: dict[str, Any],
    data: dict[str, str],
    stamps: Mapping[str, Stamp],
) -> Path:
    """Write the lock of a finished run and return its path."""
    values = {
        "lock_version": 1,
        "recipe": recipe,
        "smoke": smoke,
        "base": base,
        "data": data,
        "versions": merged_versions(stamps.values()),
        "outputs": _weights({name: stamp.outputs for name, stamp in stamps.items()}),
    }
    path = work / LOCK_FILE
    path.write_text(HEADER + yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def _weights(outputs: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Keep the weights: reports hold times and paths."""
    return {
        step: kept
        for step, files in outputs.items()
        if (kept := {name: sha for name, sha in files.items() if name.endswith(".safetensors")})
    }


def differences(lock: dict[str, Any], outputs: dict[str, dict[str, str]]) -> list[str]:
    """Return the steps whose weights are not those of the lock."""
    return [step for step, files in lock["outputs"].items() if outputs.get(step) != files]
