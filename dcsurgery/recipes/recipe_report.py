"""The end of a run: what ran, how long, expected against measured, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsurgery.markdown import table
from dcsurgery.recipes.schema import Expected
from dcsurgery.recipes.stamps import Stamp, merged_versions
from dcsurgery.surgery.plan_file import DELTA_FOLDER

if TYPE_CHECKING:
    from dcsurgery.recipes.runner import RecipeRun

RAN = {"done": "run", "resumed": "done before"}


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


def summary(run: RecipeRun, base: dict[str, Any], data: dict[str, str]) -> dict[str, Any]:
    """Return the whole report as JSON values; `base` and `data` are as pinned."""
    stamps = run.stamps
    return {
        "schema_version": 1,
        "recipe": run.recipe.model_dump(mode="json"),
        "smoke": run.smoke,
        "base": base,
        "data": data,
        "versions": merged_versions(stamps.values()),
        "seconds": round(sum(stamp.seconds for stamp in stamps.values()), 2),
        "steps": {
            name: {
                "seconds": stamp.seconds,
                "versions": stamp.versions,
                "result": stamp.result,
                "outputs": stamp.outputs,
            }
            for name, stamp in stamps.items()
        },
        "expected": [compare(row, stamps, run.smoke) for row in run.recipe.expected],
        "plots": _plots(run.work, stamps),
    }


def _plots(work: Path, stamps: Mapping[str, Stamp]) -> list[str]:
    """Return the pictures of these steps: beside an evaluation, in a trained delta."""
    places = [
        work / name / (DELTA_FOLDER if "training" in stamp.result else "")
        for name, stamp in stamps.items()
        if {"training", "eval"} & set(stamp.result)
    ]
    pictures = [path for place in places for path in sorted(place.glob("*.png"))]
    return [path.relative_to(work).as_posix() for path in pictures]


def write_report(run: RecipeRun, base: dict[str, Any], data: dict[str, str]) -> Path:
    """Write report.json and report.md and return the path of the latter."""
    found = summary(run, base, data)
    (run.work / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    path = run.work / "report.md"
    path.write_text("\n".join(_lines(run, found)) + "\n", encoding="utf-8")
    return path


def _lines(run: RecipeRun, found: dict[str, Any]) -> list[str]:
    recipe, commit = run.recipe, found["base"]["commit"]
    lines = [f"# {recipe.title}", "", f"Recipe `{recipe.name}`, from {recipe.source}."]
    if found["smoke"]:
        lines.append(
            "**Smoke run**: tiny random models and generated data; its numbers mean nothing."
        )
    at = "" if commit is None else f" at `{commit}`"
    lines += ["", f"Base: `{recipe.base.model}`{at}. {found['seconds']:.0f} s in all.", ""]
    lines += table(
        ("step", "this time", "seconds", "what came of it"),
        [
            (s.name, RAN[s.state], f"{s.stamp.seconds:.1f}", in_words(s.stamp.result))
            for s in run.steps
            if s.stamp is not None
        ],
    )
    if found["data"]:
        lines += ["", "## Data", ""]
        lines += table(("file", "SHA-256"), list(found["data"].items()))
    lines += ["", "## Expected and measured", ""]
    lines += _expected(found["expected"])
    if found["plots"]:
        lines += ["", "## Plots", "", *(f"![{plot}]({plot})" for plot in found["plots"])]
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


def in_words(result: Mapping[str, Any]) -> str:
    """Say in a few words what a step found."""
    if "training" in result:
        record = result["training"]
        where = f", trained in {result['adopted']}" if "adopted" in result else ""
        return (
            f"{record['trained_parameters']:,} parameters, {record['steps']} steps, "
            f"loss {record['first_loss']:.3f} to {record['last_loss']:.3f}{where}"
        )
    if "eval" in result:
        report = result["eval"]
        return f"{report['metric']}: " + ", ".join(
            f"{Path(m['model']).name} {m['score']['mean']:.3f} "
            f"[{m['score']['low']:.3f}, {m['score']['high']:.3f}]"
            for m in report["models"]
        )
    return ", ".join(f"{key} {value}" for key, value in result.items())
