"""`dcsurgery export`: a trained connector as a checkpoint that needs no dcsurgery."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dcsurgery.cli.options import (
    AsJson,
    DryRun,
    Link,
    Out,
    Overwrite,
    Quiet,
    Revision,
    Towers,
    read_towers,
)
from dcsurgery.cli.output import Output
from dcsurgery.errors import RequestError

EXAMPLES = (
    "dcsurgery export my-llava-delta -o my-llava-stock",
    "dcsurgery export my-llava-delta --dry-run",
    "dcsurgery export my-llava-delta -o my-llava-lora --keep-lora",
)


@dataclass(frozen=True)
class ExportOptions:
    """Where and how a trained connector is written."""

    output: Out = None
    form: Annotated[
        str,
        typer.Option(
            metavar="FORM",
            help="stock: a complete checkpoint for plain transformers. portable: one that brings "
            "the connector's code along, for any family. reference: one for the "
            "reference's own code. gguf: the mmproj file of a LLaVA for llama.cpp.",
        ),
    ] = "stock"
    outtype: Annotated[
        str,
        typer.Option(metavar="TYPE", help="Matrices of --form gguf: f32, f16 or q8_0."),
    ] = "f16"
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write a gguf that llama.cpp is known to compute differently."
        ),
    ] = False
    keep_lora: Annotated[
        bool,
        typer.Option(
            "--keep-lora",
            help="Leave a LoRA adapter beside the weights, in peft's own files, instead of merging "
            "it into them.",
        ),
    ] = False
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The base: a folder or Hub id. Default: the one the plan names."
        ),
    ] = None
    tower: Towers = None
    overwrite: Overwrite = False
    link: Link = False
    dry_run: DryRun = False


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder or Hub id that convert or finetune wrote; for --form gguf any LLaVA.",
        ),
    ],
    write: ExportOptions,
    revision: Revision = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fold what was trained into a complete checkpoint.

    No model is loaded and dcsurgery is not needed to load OUT. Where the model's config has no
    words for several hidden states, the delta is the only form, and this says so.
    """
    out = Output(as_json=as_json, quiet=quiet)
    if write.form == "gguf":
        _export_gguf(model, write, revision, out)
        return
    _refuse_gguf_options(write)
    from dcsurgery.surgery.export import export_checkpoint

    options: dict[str, Any] = {
        name: getattr(write, name) for name in ("form", "base", "keep_lora", "overwrite", "link")
    }
    options |= {"revision": revision, "towers": read_towers(write.tower)}
    if write.dry_run:
        with out.working(f"planning the export of {model}"):
            plan = export_checkpoint(model, write.output, dry_run=True, **options)
        out.result(plan, "\ndry run: nothing was written")
        return
    if write.output is None:
        raise typer.BadParameter("say where to write: -o OUT", param_hint="--output")
    growing = Path(f"{write.output.absolute()}.partial")
    remote = not Path(model).is_dir()
    with out.working(f"writing {write.output}", growing=growing, fetches=remote):
        done = export_checkpoint(model, write.output, **options)
    out.result(done, f"\nnext:\n  dcsurgery verify {shlex.quote(str(done.output))}")


def _export_gguf(model: str, write: ExportOptions, revision: str | None, out: Output) -> None:
    from dcsurgery.serving.gguf import export_gguf

    for name in ("keep_lora", "tower", "link", "dry_run"):
        if getattr(write, name):
            option = f"--{name.replace('_', '-')}"
            raise RequestError(f"{option} is not for --form gguf", hint=f"leave {option} out")
    if write.output is None:
        raise typer.BadParameter("say where to write: -o OUT", param_hint="--output")
    with out.working(f"writing {write.output}", fetches=not Path(model).is_dir()):
        done = export_gguf(
            model,
            write.output,
            outtype=write.outtype,
            base=write.base,
            revision=revision,
            overwrite=write.overwrite,
            force=write.force,
        )
    out.result(done, "\nnext:\n" + "\n".join(f"  {command}" for command in done.commands))


def _refuse_gguf_options(write: ExportOptions) -> None:
    given = {"--outtype": write.outtype != "f16", "--force": write.force}
    for option in (name for name, used in given.items() if used):
        raise RequestError(f"{option} is for --form gguf", hint=f"leave {option} out")
