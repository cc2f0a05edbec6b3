"""`dcsurgery demo`: the whole story on tiny models that were really trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dcsurgery.cli.output import Output, hide_library_bars

EXAMPLES = (
    "dcsurgery demo",
    "dcsurgery demo --work-dir demo",
)


def demo(
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Empty folder to work in. Default: a new temporary one.",
        ),
    ] = None,
) -> None:
    """Tell the whole story on tiny models, offline, in minutes.

    Embedded LLaVAs are inspected, converted to both forms and verified; then each is trained with
    and without the new connector, on the same data, and asked about pictures it has not seen.
    """
    from dcsurgery.demo import run_demo

    hide_library_bars()
    run_demo(work_dir, Output().show)
