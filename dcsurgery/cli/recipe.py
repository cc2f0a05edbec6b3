"""`dcsurgery recipe`: list, show, validate and run whole reproductions."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsurgery.cli.options import AsJson, Quiet
from dcsurgery.cli.output import Output
from dcsurgery.errors import VerificationError

if TYPE_CHECKING:
    from dcsurgery.recipes.runner import RecipeRun, Source

HELP = "Replay a whole reproduction from one file."

FAILED = 3

Name = Annotated[
    str, typer.Argument(metavar="NAME_OR_FILE", help="A shipped recipe, or a YAML file.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field, such as finetune.lr=1e-4 (every stage) or finetune.0.lr=1e-4. "
        "Repeatable.",
    ),
]


def list_(as_json: AsJson = False) -> None:
    """List the shipped recipes, their base and their cost."""
    from dcsurgery.recipes.catalog import load_recipe, shipped

    out = Output(as_json=as_json)
    recipes = [load_recipe(name) for name in shipped()]
    if as_json:
        rows = [recipe.model_dump(mode="json") for recipe in recipes]
        out.data({"schema_version": 1, "recipes": rows})
        return
    out.table(
        ("recipe", "what", "cost"),
        [(r.name, r.title, f"{r.cost.gpu}, {r.cost.hours:g} h") for r in recipes],
        "wll",
    )
    out.tell("\nnext:\n  dcsurgery recipe run tiny")


def show(name: Name) -> None:
    """Print a recipe's file."""
    from dcsurgery.recipes.catalog import find_recipe, read_text

    Output().show(read_text(find_recipe(name)).rstrip())


def validate(name: Name, changes: Changes = None, as_json: AsJson = False) -> None:
    """Check a recipe's keys and values without running anything."""
    from dcsurgery.recipes.runner import read_source
    from dcsurgery.recipes.steps import build_steps
    from dcsurgery.recipes.sweep import expand

    out = Output(as_json=as_json)
    recipe = read_source(name, tuple(changes or ())).recipe
    points = expand(recipe)
    names = [step.name for step in build_steps(points[0].recipe)]
    if as_json:
        values = {"valid": True, "steps": names, "runs": [point.name for point in points]}
        out.data({"schema_version": 1, **values})
        return
    out.show(f"{recipe.name} is valid", "bold")
    rows = [("base", recipe.base.model), ("steps", ", ".join(names))]
    if recipe.sweep:
        rows.append(("runs", f"{len(points)}, over {', '.join(recipe.sweep)}"))
    out.facts(rows)


def run(  # noqa: PLR0913 - one parameter per CLI option, by design
    name: Name,
    changes: Changes = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(metavar="D", help="Folder of everything written. Default: NAME.run."),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(metavar="D", help="Where the recipe's data paths begin.")
    ] = Path("."),
    until: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="Stop after this step, or the last of this kind."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the steps and what is missing; do nothing.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="The same steps on a tiny model and generated data, offline."),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Run a recipe or a lock. A second run goes on after the last finished step.

    Ends with report.md, report.json and recipe.lock.yaml in the work folder.
    """
    from dcsurgery.recipes.runner import plan_of, read_source, run_one
    from dcsurgery.recipes.sweep import run_sweep

    out = Output(as_json=as_json, quiet=quiet)
    source = read_source(name, tuple(changes or ()), smoke)
    work = work_dir or Path(f"{source.recipe.name}.run")
    say = out.tell
    try:
        if source.recipe.sweep:
            pairs = run_sweep(source, work, data_dir, until=until, dry_run=dry_run, say=say)
            runs = [found for _, found in pairs]
        else:
            runs = [run_one(source, work, data_dir, until=until, dry_run=dry_run, say=say)]
    except VerificationError as error:
        out.fail(error)
        return FAILED
    if as_json:
        out.data({"schema_version": 1, "runs": [plan_of(found) for found in runs]})
        return 0
    for found in runs:
        _show(found, out)
    _end(source, work, runs, out)
    return 0


def _show(found: RecipeRun, out: Output) -> None:
    from dcsurgery.recipes.recipe_report import in_words

    out.show(f"{found.recipe.name} in {found.work}", "bold")
    rows = [
        (
            step.name,
            step.state if step.stamp is None else f"{step.state}: {in_words(step.stamp.result)}",
        )
        for step in found.steps
    ]
    out.facts([*rows, *(("missing", text) for text in found.missing)])


def _end(source: Source, work: Path, runs: list[RecipeRun], out: Output) -> None:
    if not all(found.finished for found in runs):
        out.tell("\ndry run: nothing was written")
        return
    report = work / ("sweep.md" if source.recipe.sweep else "report.md")
    out.tell(f"\nreport: {report}")
    if not source.recipe.sweep and (work / "recipe.lock.yaml").is_file():
        out.tell(f"replay: dcsurgery recipe run {shlex.quote(str(work / 'recipe.lock.yaml'))}")


COMMANDS: dict[str, Callable[..., int | None]] = {
    "list": list_,
    "show": show,
    "validate": validate,
    "run": run,
}
EXAMPLES = {
    "list": ("dcsurgery recipe list",),
    "show": ("dcsurgery recipe show tiny",),
    "validate": ("dcsurgery recipe validate llava-1.5-7b-dci --set finetune.lr=1e-4",),
    "run": (
        "dcsurgery recipe run tiny",
        "dcsurgery recipe run llava-1.5-7b-dci --smoke",
        "dcsurgery recipe run llava-1.5-7b-dci --dry-run --data-dir playground",
    ),
}
