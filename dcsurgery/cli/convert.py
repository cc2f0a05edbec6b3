"""`dcsurgery convert`: the main job, and its plan with --dry-run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import typer

from dcsurgery.cli.options import AsJson, Model, Quiet, Revision, WriteOptions, read_towers
from dcsurgery.cli.output import Output
from dcsurgery.connectors.request import Connector

EXAMPLES = (
    "dcsurgery convert llava-hf/llava-1.5-7b-hf -o llava-dci",
    "dcsurgery convert ./my-llava -o my-llava-delta --form delta",
    "dcsurgery convert ./my-llava -o my-llava-sci --connector sci --layers 7,15",
    "dcsurgery convert ./my-llava -o my-llava-three --groups 3 --dry-run",
)


def convert(
    model: Model,
    write: WriteOptions,
    connector: Connector,
    revision: Revision = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Install a dense connector and write the result to OUT.

    No model is loaded: headers are edited and bytes are moved, so memory stays flat at any size.
    Everything is checked before the first byte, and OUT appears whole or not at all.
    """
    out = Output(as_json=as_json, quiet=quiet)
    options: dict[str, Any] = {
        "connector": connector,
        "revision": revision,
        "overwrite": write.overwrite,
        "link": write.link,
        "keep_all": write.keep_all,
        "towers": read_towers(write.tower),
        "template": write.template,
    }
    if write.dry_run:
        with out.working(f"planning the conversion of {model}"):
            from dcsurgery.surgery.convert import plan_conversion

            plan = plan_conversion(model, write.output, **options)
        out.result(plan, "\ndry run: nothing was written")
        return
    if write.output is None:
        raise typer.BadParameter("say where to write: -o OUT", param_hint="--output")
    growing = Path(f"{write.output.absolute()}.partial")
    remote = not Path(model).is_dir()
    with out.working(f"writing {write.output}", growing=growing, fetches=remote):
        from dcsurgery.surgery.convert import convert_checkpoint

        done = convert_checkpoint(model, write.output, **options)
    after = "inspect" if done.plan.form == "reference" else "verify"
    out.result(done, f"\nnext:\n  dcsurgery {after} {shlex.quote(str(done.output))}")
