"""The end of a run: what ran, how long, expected against measured, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsurgery.recipes.resolve import installed
from dcsurgery.recipes.schema import Expected, Recipe
from dcsurgery.recipes.stamps import Stamp


def compare(expected: Expected, stamps: Mapping[str, Stamp], smoke: bool) -> dict[str, Any]:
    """Return a published number beside what this run measured, in the published unit (percent)."""
    stamp = stamps.get(f"eval-{expected.eval}")
    measured = None
    if stamp is not None and not smoke:
        measured = round(100 * stamp.result["eval"]["models"][-1]["score"]["mean"], 2)
    verdict = "not measured here"
    if smoke:
        verdict = "smoke run: tiny models say nothing about it"
    elif measured is not None:
        close = abs(measured - expected.value) <= expected.tolerance
        verdict = "within tolerance" if close else "outside tolerance"
    return {**expected.model_dump(), "measured": measured, "verdict": verdict}


def summary(recipe: Recipe, stamps: Mapping[str, Stamp], smoke: bool) -> dict[str, Any]:
    """Return the whole report as JSON values."""
    return {
        "schema_version": 1,
        "recipe": recipe.model_dump(mode="json"),
        "smoke": smoke,
        "versions": installed(),
        "seconds": round(sum(stamp.seconds for stamp in stamps.values()), 2),
        "steps": {
            name: {"seconds": stamp.seconds, "result": stamp.result, "outputs": stamp.outputs}
            for name, stamp in stamps.items()
        },
        "expected": [compare(row, stamps, smoke) for row in recipe.expected],
    }


def write_report(recipe: Recipe, work: Path, stamps: Mapping[str, Stamp], smoke: bool) -> Path:
    """Write report.json and report.md and return the path of the latter."""
    found = summary(recipe, stamps, smoke)
    (work / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    path = work / "report.md"
    path.write_text("\n".join(_lines(recipe, work, stamps, found)) + "\n", encoding="utf-8")
    return path


def _lines(
    recipe: Recipe, work: Path, stamps: Mapping[str, Stamp], found: dict[str, Any]
) -> list[str]:
    lines = [f"# {recipe.title}", "", f"Recipe `{recipe.name}`, from {recipe.source}."]
    if found["smoke"]:
        lines.append(
            "**Smoke run**: tiny random models and generated data; its numbers mean nothing."
        )
    lines += ["", f"Base: `{recipe.base.model}`. {found['seconds']:.0f} s in all.", ""]
    lines += table(
        ("step", "seconds", "what came of it"),
        [(name, f"{s.seconds:.1f}", in_words(s.result)) for name, s in stamps.items()],
    )
    lines += ["", "## Expected and measured", ""]
    lines += _expected(found["expected"])
    plots = [p.relative_to(work).as_posix() for p in sorted(work.glob("*/*.png"))]
    if plots:
        lines += ["", "## Plots", "", *(f"![{plot}]({plot})" for plot in plots)]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return [*lines, "", f"Versions: {versions}."]


def _expected(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["The recipe expects no published number."]
    return table(
        ("benchmark", "published", "tolerance", "measured", "verdict", "source"),
        [
            (
                row["benchmark"],
                f"{row['value']:g}",
                f"{row['tolerance']:g}",
                "" if row["measured"] is None else f"{row['measured']:g}",
                _advice(row),
                row["source"],
            )
            for row in rows
        ],
    )


def _advice(row: dict[str, Any]) -> str:
    if row["measured"] is None and row["task"] is not None:
        return f"{row['verdict']} (lmms-eval task `{row['task']}`)"
    return str(row["verdict"])


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def in_words(result: Mapping[str, Any]) -> str:
    """Say in a few words what a step found."""
    if "training" in result:
        record = result["training"]
        return (
            f"{record['trained_parameters']:,} parameters, {record['steps']} steps, "
            f"loss {record['first_loss']:.3f} to {record['last_loss']:.3f}"
        )
    if "eval" in result:
        report = result["eval"]
        return f"{report['metric']}: " + ", ".join(
            f"{Path(m['model']).name} {m['score']['mean']:.3f} "
            f"[{m['score']['low']:.3f}, {m['score']['high']:.3f}]"
            for m in report["models"]
        )
    return ", ".join(f"{key} {value}" for key, value in result.items())
