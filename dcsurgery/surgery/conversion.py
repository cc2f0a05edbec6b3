"""What a conversion or an export will do, and what it did: both print themselves."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.errors import RequestError
from dcsurgery.features import describe_layers
from dcsurgery.printing import units
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.printing.wiring import draw_wiring
from dcsurgery.surgery.plan_file import ADAPTER_FOLDER, SurgeryPlan, TensorRecord, TrainingRecord

LISTED_FILES = 8


@dataclass(frozen=True)
class ConversionPlan(Printed):
    """A plan and what carrying it out would cost: an upper bound of the bytes written."""

    plan: SurgeryPlan
    bytes_to_write: int
    output: Path | None = None

    @property
    def free_bytes(self) -> int | None:
        """Bytes free on the disk the output would be written to; None without an output."""
        if self.output is None:
            return None
        place = self.output.absolute()
        existing = next(path for path in (place, *place.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        return {
            "schema_version": 1,
            "dry_run": True,
            "output": None if self.output is None else str(self.output),
            "bytes_to_write": self.bytes_to_write,
            "free_bytes": self.free_bytes,
            "plan": self.plan.model_dump(mode="json"),
        }

    def show(self, out: Sheet) -> None:
        """Put the whole plan on a sheet."""
        plan = self.plan
        out.show(f"plan: {_title(plan)}", "bold")
        rows = [("changed tensor", _tensor(record)) for record in plan.changed]
        rows += [("new tensor", _tensor(record)) for record in plan.delta]
        rows += [("config.json", line) for line in list_changes(plan.config_changes)]
        rows += [("processor", line) for line in list_changes(plan.processor_changes)]
        if plan.form != "delta":
            rows.append(("all other bytes", "the base's, untouched"))
        else:
            rows.append(("the base", "stays where it is and is loaded from there"))
        rows += [*_training(plan, self.output), *self._needs()]
        rows.append(("output", "none given" if self.output is None else str(self.output)))
        out.facts(rows + _cost(plan))
        out.heading("wiring")
        for line in draw_wiring(plan.anatomy, [plan.layout]).split("\n"):
            out.show("  " + line)

    def _needs(self) -> list[tuple[str, str]]:
        """What goes over the network and onto the disk."""
        rows, plan = [], self.plan
        if plan.form != "delta" and plan.base.folder is None:
            weights = sum(file.size for file in plan.base.files.values())
            rows.append(("to fetch", f"{units.size(weights)} into the Hub cache, if not there yet"))
        free = self.free_bytes
        room = "" if free is None else f" of {units.size(free)} free"
        shared = ", less where blocks are shared" if plan.form != "delta" else ""
        return [*rows, ("to write", f"at most {units.size(self.bytes_to_write)}{room}{shared}")]


@dataclass(frozen=True)
class Conversion(Printed):
    """What was written, where, and how each file came to be."""

    plan: SurgeryPlan
    output: Path
    transfers: tuple[Transfer, ...]
    seconds: float

    @property
    def bytes_written(self) -> int:
        """Bytes physically written; shared blocks and hard links cost none."""
        return sum(item.written for item in self.transfers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        return {
            "schema_version": 1,
            "dry_run": False,
            "output": str(self.output),
            "seconds": round(self.seconds, 3),
            "bytes_written": self.bytes_written,
            "transfers": [asdict(item) for item in self.transfers],
            "plan": self.plan.model_dump(mode="json"),
        }

    def show(self, out: Sheet) -> None:
        """Put what was written on a sheet."""
        out.show(f"{self.output}: {_title(self.plan)}", "bold")
        written = f"{units.size(self.bytes_written)} in {units.seconds(self.seconds)}"
        rows = [*_training(self.plan, self.output), ("written", written)]
        rows.append(("weight files", "\n".join(list_moves(self.transfers))))
        out.facts(rows + _cost(self.plan))


def wanted_output(output: str | Path | None, *, dry_run: bool) -> Path | None:
    """Return where to write, None in a dry run alone. Raises RequestError."""
    if output is None and not dry_run:
        raise RequestError("there is no output folder", hint="name one, or look with a dry run")
    return None if output is None else Path(output)


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


def _training(plan: SurgeryPlan, output: Path | None) -> list[tuple[str, str]]:
    """What was trained before, and where a LoRA adapter is."""
    rows = [("trained", _trained(record)) for record in plan.training]
    if plan.adapter is None:
        return rows
    if plan.adapter.merged:
        return [*rows, ("LoRA", f"merged into {units.plural(len(plan.adapter.targets), 'tensor')}")]
    place = str((output or Path("OUT")) / ADAPTER_FOLDER)
    return [*rows, ("LoRA", f'kept beside the weights: model.load_adapter("{place}")')]


def _trained(record: TrainingRecord) -> str:
    count = units.plural(len(record.trained), "tensor")
    return f"{record.train}: {units.plural(record.steps, 'step')}, {count}, on {record.data}"


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
            lines.append(f"{prefix}{key}: {compact(before)} -> {compact(after)}")
    return lines


def _tensor(record: TensorRecord) -> str:
    base = record.base_shape
    before = f"{base} -> " if base is not None and base != record.shape else ""
    return f"{record.name}\n  {record.dtype} {before}{record.shape}, in {record.file}"


def compact(value: Any) -> str:
    """Return a value as short JSON, states as runs."""
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return f"[{describe_layers(value)}]"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


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
