"""`dcsurgery export`: a trained connector as a checkpoint that needs no dcsurgery."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcsurgery.cli import units
from dcsurgery.cli.convert import list_moves
from dcsurgery.cli.options import (
    AsJson,
    Link,
    Overwrite,
    Quiet,
    Revision,
    Towers,
    read_towers,
)
from dcsurgery.cli.output import Output

if TYPE_CHECKING:
    from dcsurgery.surgery.convert import Conversion
    from dcsurgery.surgery.plan_file import SurgeryPlan, TrainingRecord

EXAMPLES = (
    "dcsurgery export my-llava-delta -o my-llava-stock",
    "dcsurgery export my-llava-delta -o my-llava-lora --keep-lora",
)


@dataclass(frozen=True)
class ExportOptions:
    """Where and how a trained connector is written."""

    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.")]
    form: Annotated[
        str,
        typer.Option(
            metavar="FORM",
            help="stock: a complete checkpoint for plain transformers. portable: one that brings "
            "the connector's code along, for any family. reference: one for the "
            "reference's own code.",
        ),
    ] = "stock"
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


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A folder or Hub id that convert or finetune wrote."),
    ],
    options: ExportOptions,
    revision: Revision = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fold what was trained into a complete checkpoint.

    No model is loaded and dcsurgery is not needed to load OUT. Where the model's config has no
    words for several hidden states, the delta is the only form, and this says so.
    """
    out = Output(as_json=as_json, quiet=quiet)
    from dcsurgery.surgery.export import export_checkpoint

    growing = Path(f"{options.output.absolute()}.partial")
    remote = not Path(model).is_dir()
    with out.working(f"writing {options.output}", growing=growing, fetches=remote):
        done = export_checkpoint(
            model,
            options.output,
            form=options.form,
            base=options.base,
            keep_lora=options.keep_lora,
            revision=revision,
            overwrite=options.overwrite,
            link=options.link,
            towers=read_towers(options.tower),
        )
    if as_json:
        out.data(_values(done))
        return
    _show(done, out)
    out.tell(f"\nnext:\n  dcsurgery verify {shlex.quote(str(done.output))}")


def _values(done: Conversion) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "output": str(done.output),
        "seconds": round(done.seconds, 3),
        "bytes_written": done.bytes_written,
        "transfers": [asdict(item) for item in done.transfers],
        "plan": done.plan.model_dump(mode="json"),
    }


def _show(done: Conversion, out: Output) -> None:
    plan = done.plan
    out.show(f"{done.output}: {plan.kind} in {plan.base.id}, {plan.form} form", "bold")
    rows = [("trained", _trained(record)) for record in plan.training] or [("trained", "not yet")]
    rows += _adapter(plan, done.output)
    written = f"{units.size(done.bytes_written)} in {units.seconds(done.seconds)}"
    moves = "\n".join(list_moves(done.transfers))
    out.facts([*rows, ("written", written), ("weight files", moves), ("loads with", plan.loader)])


def _trained(record: TrainingRecord) -> str:
    count = units.plural(len(record.trained), "tensor")
    return f"{record.train}: {units.plural(record.steps, 'step')}, {count}, on {record.data}"


def _adapter(plan: SurgeryPlan, output: Path) -> list[tuple[str, str]]:
    if plan.adapter is None:
        return []
    count = len(plan.adapter.targets)
    if plan.adapter.merged:
        return [("LoRA", f"merged into {units.plural(count, 'tensor')}")]
    place = str(output / "dense_connector" / "lora")
    return [("LoRA", f'kept beside the weights: model.load_adapter("{place}")')]
