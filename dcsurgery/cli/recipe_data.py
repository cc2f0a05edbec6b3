"""`dcsurgery recipe data` and `recipe pin`: what a recipe starts from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dcsurgery.cli.options import AsJson, Changes, DataDir, RecipeName
from dcsurgery.cli.output import Output
from dcsurgery.errors import RequestError

MISSING = 3


def data(  # noqa: PLR0913 - one parameter per CLI option, by design
    name: RecipeName,
    changes: Changes = None,
    data_dir: DataDir = Path("."),
    convert: Annotated[
        str | None,
        typer.Option(
            metavar="BENCHMARK",
            help="Make rows of a benchmark's published files instead: gqa, vqav2, okvqa, textvqa, "
            "vizwiz, pope, scienceqa, seedbench, mme. NAME_OR_FILE is then FILE, FILE,FILE or a "
            "folder.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="ROWS", help="With --convert: the JSONL to write."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --convert scienceqa: the split. Default: test."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Count the rows and pictures that a recipe reads; say what to fetch and where it is.

    Nothing is downloaded. Exits with 3 when a step could not run.
    """
    out = Output(as_json=as_json)
    if convert is not None:
        from dcsurgery.recipes.benchmarks import convert_benchmark

        if output is None or changes or data_dir != Path("."):
            raise RequestError(
                "--convert writes a file, and knows no recipe",
                hint="say which file, without --set and --data-dir: -o eval/rows.jsonl",
            )
        if split is not None and convert != "scienceqa":
            raise RequestError(
                f"--split is of --convert scienceqa; {convert} has none", hint="leave it out"
            )
        out.result(convert_benchmark(convert, name, output, split=split or "test"))
        return 0
    for option, value in (("-o", output), ("--split", split)):
        if value is not None:
            raise RequestError(
                f"{option} is of --convert", hint=f"leave out {option}, or say --convert scienceqa"
            )
    from dcsurgery.recipes.data_check import check_data
    from dcsurgery.recipes.runner import read_source

    source = read_source(name, tuple(changes or ()))
    with out.working(f"counting rows and pictures in {data_dir}"):
        # A recipe that always runs as --smoke makes its data itself.
        found = check_data(source.recipe, data_dir, steps=() if source.smoke else None)
    out.result(found)
    return MISSING if found.problems else 0


def pin(
    name: RecipeName,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The pinned recipe to write.")
    ],
    changes: Changes = None,
    data_dir: DataDir = Path("."),
    as_json: AsJson = False,
) -> None:
    """Write a recipe with the commits that the Hub has of its model and data sets.

    A run of it uses that model's commit, and the lock records it.
    """
    from dcsurgery.recipes.pin import pin_recipe

    out = Output(as_json=as_json)
    found = pin_recipe(name, output, changes=tuple(changes or ()), data_dir=data_dir)
    data = "" if data_dir == Path(".") else f" --data-dir {shlex.quote(str(data_dir))}"
    out.result(found, f"\nnext:\n  dcsurgery recipe run {shlex.quote(str(output))}{data}")
