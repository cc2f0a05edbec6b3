"""--smoke: the same recipe on a tiny model of the same architecture and on generated data."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.checkpoint.written import require_ours, strangers
from dcsurgery.errors import RequestError
from dcsurgery.recipes.schema import Eval, Finetune, Recipe, Smoke, parse_recipe

WORLD = "smoke"
BASE, TRAIN, TEST, IMAGES = "base", "train.json", "test.json", "images"
MARK = ".complete"
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
ROWS = {TRAIN: 12, TEST: 6}
# Two steps of four rows: enough for every part of a training to run.
SMALL = {
    "batch_size": 4,
    "micro_batch": 2,
    "max_steps": 2,
    "epochs": 1,
    "precision": "fp32",
    "quantize": None,
    "lora_rank": 4,
    "lora_alpha": 8,
}


def shrink(recipe: Recipe) -> Recipe:
    """Return a recipe with the tiny base, generated data and two steps per stage."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    values["base"] = {"model": BASE}
    values["sweep"] = {}
    if recipe.verify is not None:
        values["verify"] = {**values.get("verify", {}), "images": []}
    values["finetune"] = [
        {**stage, **SMALL, "data": TRAIN, "images": IMAGES, "split": "train", "columns": {}}
        for stage in values.get("finetune", [])
    ]
    small = {
        "data": TEST,
        "images": IMAGES,
        "split": "test",
        "columns": {},
        "limit": 4,
        "max_new_tokens": 4,
    }
    values["eval"] = [{**item, **small} for item in values.get("eval", [])]
    if recipe.publish is not None:
        values["publish"] = {
            **values["publish"],
            "repo": recipe.publish.repo or f"smoke/{recipe.name}",
        }
    return parse_recipe(values, f"{recipe.name} --smoke")


def overridden(before: Recipe, after: Recipe) -> list[str]:
    """Say what a smoke run does otherwise than the recipe says, a line per step."""
    lines = [f"smoke: the base is a tiny {before.smoke.model}, not {before.base.model}"]
    for kind in ("finetune", "eval"):
        pairs = zip(getattr(before, kind), getattr(after, kind), strict=True)
        for number, (old, new) in enumerate(pairs, start=1):
            was, now = _fields(old), _fields(new)
            told = [f"{k} {now[k]} ({_value(was[k])})" for k in now if now[k] != was[k]]
            name = new.name if isinstance(new, Eval) else number
            lines += [f"smoke: {kind}-{name}: {', '.join(told)}"] if told else []
    return lines


def _fields(step: Finetune | Eval) -> dict[str, Any]:
    return step.model_dump(mode="json") if isinstance(step, Eval) else asdict(step)


def _value(given: Any) -> str:
    return "not set in the recipe" if given is None else f"recipe: {given}"


def is_built(recipe: Recipe, folder: Path) -> bool:
    """Return whether build_world has written this recipe's world."""
    mark = folder / MARK
    return mark.is_file() and mark.read_text() == _wanted(recipe)


def wrote(folder: Path) -> bool:
    """Return whether build_world has written a folder, for whatever recipe."""
    try:
        return set(json.loads((folder / MARK).read_bytes())) == set(Smoke.model_fields)
    except (OSError, ValueError, TypeError):
        return False


def _wanted(recipe: Recipe) -> str:
    return json.dumps(recipe.smoke.model_dump(), sort_keys=True)


def remove_world(folder: Path) -> None:
    """Remove a world that build_world wrote. Raises OutputExistsError for what it did not write."""
    if (folder / MARK).is_file():
        require_ours(folder, strangers(folder), "move it away, or choose another --work-dir")
        shutil.rmtree(folder)


def build_world(recipe: Recipe, folder: Path) -> None:
    """Write the tiny base and its data, unless they are there whole already.

    Raises OutputExistsError for a folder that holds anything else.
    """
    if is_built(recipe, folder):
        return
    with staged_output(folder, overwrite=True) as new:
        _write_model(recipe, new / BASE)
        _write_data(new)
        (new / MARK).write_text(_wanted(recipe))


def _write_model(recipe: Recipe, folder: Path) -> None:
    name = recipe.smoke.model
    try:
        write = getattr(importlib.import_module(f"dcsurgery.tiny.{name}"), f"write_tiny_{name}")
    except (ImportError, AttributeError):
        raise RequestError(
            f"smoke.model {name!r} is no tiny model", hint="see the modules of dcsurgery.tiny"
        ) from None
    connector = recipe.smoke.reference
    if connector is None:
        write(folder, **recipe.smoke.options)
        return
    from dcsurgery.surgery.convert import convert_checkpoint

    plain = folder.with_name("plain")
    write(plain, **recipe.smoke.options)
    convert_checkpoint(plain, folder, connector=connector, form="reference")


def _write_data(folder: Path) -> None:
    """Plain coloured pictures and one question about each, in LLaVA's JSON."""
    from PIL import Image

    drawn = random.Random(0)
    (folder / IMAGES).mkdir(exist_ok=True)
    for file, count in ROWS.items():
        rows: list[dict[str, Any]] = []
        for number in range(count):
            colour = drawn.choice(sorted(COLOURS))
            name = f"{Path(file).stem}-{number}.png"
            Image.new("RGB", (32, 32), COLOURS[colour]).save(folder / IMAGES / name)
            rows.append(_row(f"{Path(file).stem}-{number}", name, colour))
        (folder / file).write_text(json.dumps(rows, indent=1) + "\n")


def _row(identity: str, image: str, colour: str) -> dict[str, Any]:
    return {
        "id": identity,
        "image": image,
        "type": "colour",
        "options": sorted(COLOURS),
        "conversations": [
            {"from": "human", "value": "<image>\nWhich colour is it?"},
            {"from": "gpt", "value": colour},
        ],
    }
