"""`dcsurgery demo`: the whole story on tiny models that were really trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcsurgery.cli.output import Output, hide_library_bars

EXAMPLES = (
    "dcsurgery demo",
    "dcsurgery demo --work-dir demo",
    "dcsurgery demo --full --work-dir full-demo --towers 8",
)


def demo(
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Empty folder to work in; with --full also one to go on in. Default: a new "
            "temporary folder, full-demo with --full.",
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Make the models from nothing too, with fresh seeds: about an hour."
        ),
    ] = False,
    towers: Annotated[int, typer.Option(help="With --full: how many models to make.")] = 8,
) -> None:
    """Tell the whole story on tiny models, offline, in minutes.

    Embedded LLaVAs are inspected, converted to both forms and verified; then each is trained with
    and without the new connector, on the same data, and asked about pictures it has not seen.
    """
    hide_library_bars()
    if full:
        from dcsurgery.demo.full import run_full

        run_full(work_dir or Path("full-demo"), Output().show, towers=towers)
    else:
        from dcsurgery.demo import run_demo

        run_demo(work_dir, Output().show)
