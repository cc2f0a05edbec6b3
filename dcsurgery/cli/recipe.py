"""`dcsurgery recipe`: list, show, validate and run whole reproductions."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcsurgery.cli.options import AsJson, Changes, DataDir, Quiet, RecipeName
from dcsurgery.cli.output import Output
from dcsurgery.cli.recipe_data import data, pin
from dcsurgery.errors import RequestError, VerificationError

if TYPE_CHECKING:
    from dcsurgery.recipes.launch import Launch
    from dcsurgery.recipes.runner import RecipeRun, Source

HELP = "Replay a whole reproduction from one file."

FAILED = 3


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


def show(name: RecipeName) -> None:
    """Print a recipe's file."""
    from dcsurgery.recipes.catalog import find_recipe, read_text

    Output().show(read_text(find_recipe(name)).rstrip())


def validate(name: RecipeName, changes: Changes = None, as_json: AsJson = False) -> None:
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
    name: RecipeName,
    changes: Changes = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(metavar="D", help="Folder of everything written. Default: NAME.run."),
    ] = None,
    data_dir: DataDir = Path("."),
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
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Train in N processes, a GPU each, on all machines together. accelerate starts "
            "them; finetune.sharding says how they share the model. Default: as the recipe says.",
        ),
    ] = None,
    machines: Annotated[
        int, typer.Option(metavar="M", min=1, help="Machines, which all see the work folder.")
    ] = 1,
    machine_rank: Annotated[
        int, typer.Option(metavar="R", min=0, help="Which of them this is. The first is 0.")
    ] = 0,
    main_address: Annotated[
        str | None, typer.Option(metavar="HOST", help="Where the first machine is reached.")
    ] = None,
    main_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="And on which port. Default: 29500.")
    ] = None,
    accelerate_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Start trainings as this file of `accelerate config` says."
        ),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Print an sbatch script of this run; start nothing.")
    ] = False,
    hf_jobs: Annotated[
        bool,
        typer.Option("--hf-jobs", help="Print a script for `hf jobs run`; start nothing."),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Run a recipe or a lock. A second run goes on after the last finished step.

    Ends with report.md, report.json and recipe.lock.yaml in the work folder.
    """
    from dcsurgery.recipes.launch import Launch
    from dcsurgery.recipes.runner import plan_of, read_source, run_one
    from dcsurgery.recipes.sweep import run_sweep

    out = Output(as_json=as_json, quiet=quiet)
    source = read_source(name, tuple(changes or ()), smoke)
    work = work_dir or Path(f"{source.recipe.name}.run")
    launch = Launch(processes, machines, machine_rank, main_address, main_port, accelerate_config)
    if slurm or hf_jobs:
        if (slurm and hf_jobs) or machine_rank or main_address is not None:
            raise RequestError(
                "a script is for one kind of cluster, and says itself which machine is which",
                hint="use --slurm or --hf-jobs alone, with --processes and --machines",
            )
        if dry_run or smoke:
            raise RequestError(
                f"a script is of the whole run, and {'--dry-run' if dry_run else '--smoke'} is "
                "done here",
                hint="leave it out, or --slurm and --hf-jobs",
            )
        words = [name, *(word for change in changes or () for word in ("--set", change))]
        told: dict[str, Any] = {"--work-dir": work_dir, "--data-dir": data_dir, "--until": until}
        told |= {"--main-port": main_port, "--accelerate-config": accelerate_config}
        _print_script(source, words, launch, out, told, slurm=slurm)
        return 0
    options: dict[str, Any] = {
        "until": until,
        "dry_run": dry_run,
        "launch": launch,
        "say": out.tell,
    }
    try:
        if source.recipe.sweep:
            runs = [found for _, found in run_sweep(source, work, data_dir, **options)]
        else:
            runs = [run_one(source, work, data_dir, **options)]
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


def adopt(  # noqa: PLR0913 - one parameter per CLI option, by design
    name: RecipeName,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A training, such as finetune-1.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `finetune` wrote.")],
    changes: Changes = None,
    work_dir: Annotated[
        Path | None, typer.Option(metavar="D", help="Folder of the run. Default: NAME.run.")
    ] = None,
    data_dir: DataDir = Path("."),
    as_json: AsJson = False,
) -> int:
    """Take a stage that was trained elsewhere as a step's result, if it is that stage's.

    The next `recipe run` goes on after it.
    """
    from dataclasses import asdict

    from dcsurgery.recipes.adopt import adopt_step
    from dcsurgery.recipes.recipe_report import in_words

    out = Output(as_json=as_json)
    given = tuple(changes or ())
    try:
        stamp = adopt_step(name, step, folder, changes=given, work_dir=work_dir, data_dir=data_dir)
    except VerificationError as error:
        out.fail(error)
        return FAILED
    if as_json:
        out.data({"schema_version": 1, "stamp": asdict(stamp)})
        return 0
    out.show(f"{step}: taken from {folder}: {in_words(stamp.result)}", "bold")
    out.tell(f"\nnext:\n  dcsurgery recipe run {name}")
    return 0


def _print_script(
    source: Source,
    words: list[str],
    launch: Launch,
    out: Output,
    told: dict[str, Any],
    *,
    slurm: bool,
) -> None:
    from dcsurgery.recipes.launch import check_config
    from dcsurgery.recipes.runner import chosen
    from dcsurgery.recipes.scripts import jobs_script, slurm_script
    from dcsurgery.recipes.steps import build_steps
    from dcsurgery.recipes.sweep import expand

    chosen(build_steps(expand(source.recipe)[0].recipe), told["--until"])
    words = [*words, *(word for key, value in told.items() if value for word in (key, str(value)))]
    if slurm:
        check_config(launch)
        script = slurm_script(source.recipe, words, launch)
    else:
        keys = ("--work-dir", "--data-dir", "--accelerate-config")
        paths = [words[0], *(str(told[key]) for key in keys if told[key])]
        script = jobs_script(source.recipe, words, launch, paths)
    if out.as_json:
        out.data({"schema_version": 1, "script": script})
        return
    out.piece(script)


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
    "data": data,
    "pin": pin,
    "run": run,
    "adopt": adopt,
}
EXAMPLES = {
    "list": ("dcsurgery recipe list",),
    "show": ("dcsurgery recipe show tiny",),
    "validate": ("dcsurgery recipe validate llava-1.5-7b-dci --set finetune.lr=1e-4",),
    "data": (
        "dcsurgery recipe data llava-1.5-7b-dci --data-dir playground",
        "dcsurgery recipe data TextVQA_0.5.1_val.json --convert textvqa -o eval/textvqa.jsonl",
    ),
    "pin": ("dcsurgery recipe pin llava-1.5-7b-dci -o pinned.yaml",),
    "run": (
        "dcsurgery recipe run tiny",
        "dcsurgery recipe run llava-1.5-7b-dci --smoke",
        "dcsurgery recipe run llava-1.5-7b-dci --dry-run --data-dir playground",
        "dcsurgery recipe run llava-1.5-7b-dci --processes 8",
        "dcsurgery recipe run llava-1.5-7b-dci --data-dir playground --slurm",
    ),
    "adopt": ("dcsurgery recipe adopt llava-1.5-7b-dci finetune-1 trained-elsewhere",),
}
