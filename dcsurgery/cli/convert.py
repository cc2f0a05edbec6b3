"""`dcsurgery convert`: the main job, and its plan with --dry-run."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dcsurgery.cli import units
from dcsurgery.cli.options import (
    AsJson,
    ConnectorOptions,
    Model,
    Quiet,
    Revision,
    WriteOptions,
    read_towers,
)
from dcsurgery.cli.output import Output

if TYPE_CHECKING:
    from dcsurgery.checkpoint.copying import Transfer
    from dcsurgery.surgery.convert import Conversion, Preview
    from dcsurgery.surgery.plan_file import SurgeryPlan, TensorRecord

EXAMPLES = (
    "dcsurgery convert llava-hf/llava-1.5-7b-hf -o llava-dci",
    "dcsurgery convert ./my-llava -o my-llava-delta --form delta",
    "dcsurgery convert ./my-llava -o my-llava-sci --connector sci --layers 7,15",
    "dcsurgery convert ./my-llava -o my-llava-three --groups 3 --dry-run",
)
LISTED_FILES = 8


def convert(
    model: Model,
    write: WriteOptions,
    choice: ConnectorOptions,
    revision: Revision = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Install a dense connector and write the result to OUT.

    No model is loaded: headers are edited and bytes are moved, so memory stays flat at any size.
    Everything is checked before the first byte, and OUT appears whole or not at all.
    """
    out = Output(as_json=as_json, quiet=quiet)
    if write.dry_run:
        _preview(model, write, choice, revision, out)
        return
    if write.output is None:
        raise typer.BadParameter("say where to write: -o OUT", param_hint="--output")
    from dcsurgery.surgery.convert import convert_checkpoint

    growing = Path(f"{write.output.absolute()}.partial")
    remote = not Path(model).is_dir()
    with out.working(f"writing {write.output}", growing=growing, fetches=remote):
        done = convert_checkpoint(
            model,
            write.output,
            revision=revision,
            overwrite=write.overwrite,
            link=write.link,
            keep_all=write.keep_all,
            towers=read_towers(write.tower),
            template=write.template,
            **asdict(choice),
        )
    if as_json:
        out.data(_done(done))
        return
    _show_done(done, out)
    after = "inspect" if done.plan.form == "reference" else "verify"
    out.tell(f"\nnext:\n  dcsurgery {after} {shlex.quote(str(done.output))}")


def _preview(
    model: str, write: WriteOptions, choice: ConnectorOptions, revision: str | None, out: Output
) -> None:
    from dcsurgery.surgery.convert import make_spec, preview_conversion

    spec = make_spec(**asdict(choice))
    with out.working(f"planning the conversion of {model}"):
        preview = preview_conversion(
            model,
            spec,
            output=write.output,
            overwrite=write.overwrite,
            link=write.link,
            keep_all=write.keep_all,
            revision=revision,
            towers=read_towers(write.tower),
            template=write.template,
        )
    if out.as_json:
        out.data(_planned(preview, write.output))
        return
    _show_plan(preview, write.output, out)
    out.tell("\ndry run: nothing was written")


def _planned(preview: Preview, output: Path | None) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "dry_run": True,
        "output": None if output is None else str(output),
        "bytes_to_write": preview.bytes_to_write,
        "free_bytes": _free_bytes(output),
        "plan": preview.plan.model_dump(mode="json"),
    }


def _free_bytes(output: Path | None) -> int | None:
    """Bytes free on the disk an output would be written to."""
    if output is None:
        return None
    place = output.absolute()
    existing = [path for path in (place, *place.parents) if path.exists()]
    return shutil.disk_usage(existing[0]).free


def _done(done: Conversion) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "dry_run": False,
        "output": str(done.output),
        "seconds": round(done.seconds, 3),
        "bytes_written": done.bytes_written,
        "transfers": [asdict(item) for item in done.transfers],
        "plan": done.plan.model_dump(mode="json"),
    }


def _title(plan: SurgeryPlan) -> str:
    at = f" at {plan.base.commit[:12]}" if plan.base.commit else ""
    return f"{plan.kind} into {plan.base.id}{at}, {plan.form} form"


def _cost(plan: SurgeryPlan) -> list[tuple[str, str]]:
    rows = [
        ("new parameters", units.count(plan.new_parameters)),
        ("extra compute", f"{units.flops(plan.extra_flops_per_image)} for one image"),
        ("image tokens", f"{plan.image_tokens:,} for one image"),
        ("loads with", plan.loader),
    ]
    return rows + [("note", note) for note in plan.notes]


def _show_plan(preview: Preview, output: Path | None, out: Output) -> None:
    from dcsurgery.cli.wiring import draw_wiring

    plan = preview.plan
    out.show(f"plan: {_title(plan)}", "bold")
    rows = [("changed tensor", _tensor(record)) for record in plan.changed]
    rows += [("new tensor", _tensor(record)) for record in plan.delta]
    rows += [("config.json", line) for line in list_changes(plan.config_changes)]
    rows += [("processor", line) for line in list_changes(plan.processor_changes)]
    if plan.form != "delta":
        rows.append(("all other bytes", "the base's, untouched"))
    else:
        rows.append(("the base", "stays where it is and is loaded from there"))
    rows += _needs(preview, output)
    rows.append(("output", "none given" if output is None else str(output)))
    out.facts(_merged(rows + _cost(plan)))
    out.heading("wiring")
    for line in draw_wiring(plan.anatomy, [plan.layout]).split("\n"):
        out.show("  " + line)


def _needs(preview: Preview, output: Path | None) -> list[tuple[str, str]]:
    """What goes over the network and onto the disk."""
    rows, plan = [], preview.plan
    if plan.form != "delta" and plan.base.folder is None:
        weights = sum(file.size for file in plan.base.files.values())
        rows.append(("to fetch", f"{units.size(weights)} into the Hub cache, if not there yet"))
    free = _free_bytes(output)
    room = "" if free is None else f" of {units.size(free)} free"
    shared = ", less where blocks are shared" if plan.form != "delta" else ""
    return [*rows, ("to write", f"at most {units.size(preview.bytes_to_write)}{room}{shared}")]


def _merged(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave the name out where it repeats the row above."""
    return [
        ("" if key == above else key, text)
        for (above, _), (key, text) in pairwise([("", ""), *rows])
    ]


def _tensor(record: TensorRecord) -> str:
    base = record.base_shape
    before = f"{base} -> " if base is not None and base != record.shape else ""
    return f"{record.name}\n  {record.dtype} {before}{record.shape}, in {record.file}"


def list_changes(changes: Mapping[str, Mapping[str, Any]], prefix: str = "") -> list[str]:
    """Return a line for every key that changes, those inside of sections by their path."""
    lines = []
    for key, change in changes.items():
        before, after = change["from"], change["to"]
        if isinstance(before, dict) and isinstance(after, dict):
            keys = [name for name in {**before, **after} if before.get(name) != after.get(name)]
            inner = {name: {"from": before.get(name), "to": after.get(name)} for name in keys}
            lines += list_changes(inner, f"{prefix}{key}.")
        else:
            lines.append(f"{prefix}{key}: {_compact(before)} -> {_compact(after)}")
    return lines


def _compact(value: Any) -> str:
    from dcsurgery.features import describe_layers

    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return f"[{describe_layers(value)}]"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _show_done(done: Conversion, out: Output) -> None:
    out.show(f"{done.output}: {_title(done.plan)}", "bold")
    written = f"{units.size(done.bytes_written)} in {units.seconds(done.seconds)}"
    rows = [("written", written)]
    rows += [("weight files", "\n".join(list_moves(done.transfers)))]
    out.facts(rows + _merged(_cost(done.plan)))


def list_moves(transfers: tuple[Transfer, ...]) -> list[str]:
    """Say how each weight file came to be; of many only the count of each kind."""
    weights = [item for item in transfers if item.file.endswith(".safetensors")]
    others = len(transfers) - len(weights)
    if len(weights) > LISTED_FILES:
        lines = [f"{mode}: {count}" for mode, count in Counter(i.mode for i in weights).items()]
    else:
        longest = max(len(item.file) for item in weights)
        lines = [
            f"{item.file:<{longest}}  {item.mode:<8}  {units.size(item.written)}"
            for item in weights
        ]
    return [*lines, f"and {units.plural(others, 'other file')}"]
