"""`dcsurgery demo`: the whole story on a tiny model."""

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
            metavar="DIR", help="Empty folder to work in. Default: a new temporary folder."
        ),
    ] = None,
) -> None:
    """Tell the whole story on a tiny model, offline, in a minute.

    A tiny LLaVA with random weights is made here, inspected, converted to both forms, verified and
    loaded beside its base.
    """
    from dcsurgery.demo import run_demo

    hide_library_bars()
    run_demo(work_dir, Output().show)
