"""One recipe over several values of its fields: a run each, one table and one plot at the end."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.written import require_ours
from dcsurgery.markdown import table
from dcsurgery.recipes.catalog import set_field
from dcsurgery.recipes.runner import RecipeRun, Source, run_one
from dcsurgery.recipes.schema import Recipe, parse_recipe
from dcsurgery.recipes.stamps import FOLDER as STAMPS
from dcsurgery.recipes.steps import Say

TEXT, JSON, PLOT = FILES = ("sweep.md", "sweep.json", "sweep.png")


@dataclass(frozen=True)
class Point:
    """One combination of a sweep: a name for its folder, and the recipe without the sweep."""

    name: str
    recipe: Recipe


def expand(recipe: Recipe) -> tuple[Point, ...]:
    """Return every combination of a recipe's sweep, in the order of its file."""
    keys = list(recipe.sweep)
    points = []
    for values in itertools.product(*recipe.sweep.values()):
        fields = recipe.model_dump(mode="json", exclude_unset=True)
        fields.pop("sweep", None)
        for key, value in zip(keys, values, strict=True):
            set_field(fields, key, copy.deepcopy(value))
        name = ",".join(_label(key, value) for key, value in zip(keys, values, strict=True))
        points.append(Point(name, parse_recipe(fields, f"{recipe.name}, {name}")))
    return tuple(points)


def _label(key: str, value: Any) -> str:
    """A name a folder can have: the last part of the key and its values."""
    parts = value.values() if isinstance(value, dict) else [value]
    text = "-".join(str(part) for part in parts)
    return re.sub(r"[^\w.,;+-]", "_", f"{key.rpartition('.')[2]}-{text}".replace(";", "+"))


def run_sweep(
    source: Source, work: Path, data: Path, *, say: Say, **options: Any
) -> tuple[tuple[Point, RecipeRun], ...]:
    """Run every point in a folder of its own, with the options of run_one.

    Writes sweep.md, sweep.json and sweep.png.

    Finished points are not run again. Raises the DcSurgeryError of the point that failed.
    """
    runs = []
    points = expand(source.recipe)
    _check_work(work, points)
    for number, point in enumerate(points, start=1):
        say(f"== {number}/{len(points)}: {point.name}")
        one = replace(source, recipe=point.recipe)
        run = run_one(one, work / point.name, data, say=say, **options)
        runs.append((point, run))
    launch = options.get("launch")
    if not options["dry_run"] and (launch is None or launch.machine_rank == 0):
        _write(source.recipe, work, runs)
    return tuple(runs)


def _check_work(work: Path, points: tuple[Point, ...]) -> None:
    """Refuse a folder whose files of our names no sweep wrote. Raises OutputExistsError."""
    ran = any((work / point.name / STAMPS).is_dir() for point in points)
    there = [path for path in map(work.joinpath, FILES) if os.path.lexists(path)]
    odd = [path.name for path in there if path.is_symlink() or not ran]
    require_ours(work, odd, "move it away, or choose another --work-dir")


def rows_of(runs: list[tuple[Point, RecipeRun]]) -> list[dict[str, Any]]:
    """Return one row of plain values per point: cost, last loss, score of every eval step."""
    rows = []
    for point, run in runs:
        row: dict[str, Any] = {"point": point.name}
        for step in run.steps:
            result = {} if step.stamp is None else step.stamp.result
            if "new_parameters" in result:
                row |= {key: result[key] for key in ("new_parameters", "image_tokens")}
            if "training" in result:
                row["last_loss"] = result["training"]["last_loss"]
            if "eval" in result:
                row[step.name] = result["eval"]["models"][-1]["score"]
        rows.append(row)
    return rows


def _write(recipe: Recipe, work: Path, runs: list[tuple[Point, RecipeRun]]) -> None:
    rows = rows_of(runs)
    (work / JSON).write_text(json.dumps(rows, indent=2) + "\n")
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    cells = [tuple(_cell(row.get(key)) for key in columns) for row in rows]
    lines = [f"# {recipe.title}", "", *table(columns, cells)]
    if any(run.smoke for _, run in runs):
        lines += ["", "**Smoke run**: tiny random models; its numbers mean nothing."]
    (work / TEXT).write_text("\n".join([*lines, "", "![sweep](sweep.png)"]) + "\n")
    _plot(rows, work / PLOT)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return "" if value is None else (f"{value:.4g}" if isinstance(value, float) else str(value))


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what was measured, a panel each: scores with their intervals, else the last loss."""
    from matplotlib.figure import Figure

    measured = list(dict.fromkeys(key for row in rows for key in row if key.startswith("eval-")))
    keys = measured or ["last_loss"]
    figure = Figure(figsize=(7, (0.4 * len(rows) + 1.2) * len(keys)), layout="constrained")
    axes = figure.subplots(len(keys), 1, squeeze=False)[:, 0]
    names = [row["point"] for row in rows]
    for axis, key in zip(axes, keys, strict=True):
        for place, row in enumerate(rows):
            value = row.get(key)
            if isinstance(value, dict):
                axis.plot([value["low"], value["high"]], [place, place], color="C0")
                axis.plot(value["mean"], place, "o", color="C0")
            elif value is not None:
                axis.plot(value, place, "o", color="C0")
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel(key)
    figure.savefig(path, dpi=120)
