"""Apply a plan: write a delta or a stock checkpoint. No model is loaded, torch never imported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from dcsurgery.architectures import find_architecture
from dcsurgery.checkpoint.checks import render_object
from dcsurgery.checkpoint.contents import CONFIG, Checkpoint
from dcsurgery.checkpoint.copying import Transfer, make_folder, write_file
from dcsurgery.checkpoint.destination import check_output, on_same_disk
from dcsurgery.checkpoint.digests import digest
from dcsurgery.checkpoint.rewrite import (
    NewTensor,
    estimate_bytes,
    write_checkpoint,
    write_tensors,
)
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.connectors.request import Connector, ConnectorKeywords
from dcsurgery.errors import PlanError
from dcsurgery.originals import open_model, told
from dcsurgery.originals.adopted import Adopted
from dcsurgery.surgery.conversion import Conversion, ConversionPlan, wanted_output
from dcsurgery.surgery.delta_readme import delta_readme
from dcsurgery.surgery.paper_form import TOWER_KEY, reference_checkpoint, write_reference
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import (
    DELTA_FILE,
    DELTA_FOLDER,
    PLAN_FILE,
    SurgeryPlan,
    TensorRecord,
)
from dcsurgery.surgery.planned_tensors import planned_delta, stock_tensors
from dcsurgery.surgery.portable import CODE_FILE, code_text, portable_config
from dcsurgery.surgery.processor_changes import planned_processor, processor_files
from dcsurgery.surgery.processor_fit import PROCESSOR_FILE

METADATA = {"format": "pt"}


class ConvertOptions(ConnectorKeywords, total=False):
    """The keywords of convert_checkpoint and plan_conversion."""

    connector: Connector | str | None
    revision: str | None
    overwrite: bool
    link: bool
    towers: Mapping[str, str] | None
    keep_all: bool
    template: str | None


def plan_conversion(
    model: str | Path, output: str | Path | None = None, **options: Unpack[ConvertOptions]
) -> ConversionPlan:
    """Return the whole plan without writing anything; a Hub model's weights are not fetched.

    Takes what convert takes, and raises whatever that would refuse. print() of the plan shows what
    `dcsurgery convert --dry-run` shows; its `plan` is the content of plan.json.
    """
    return convert_checkpoint(model, output, dry_run=True, **options)


@overload
def convert_checkpoint(
    model: str | Path,
    output: str | Path,
    *,
    dry_run: Literal[False] = ...,
    **options: Unpack[ConvertOptions],
) -> Conversion: ...


@overload
def convert_checkpoint(
    model: str | Path,
    output: str | Path | None = ...,
    *,
    dry_run: Literal[True],
    **options: Unpack[ConvertOptions],
) -> ConversionPlan: ...


def convert_checkpoint(
    model: str | Path,
    output: str | Path | None = None,
    *,
    dry_run: bool = False,
    **options: Unpack[ConvertOptions],
) -> Conversion | ConversionPlan:
    """Install a connector in a model and write the result to `output`.

    `model` is a folder or a Hub id (at `revision`); `connector` a Connector, or its kind with the
    other fields as keywords (layers="7,15"). `towers` says where the vision tower is that a model
    in its original format names (its name -> folder or Hub id), `template` how its prompts are
    written (a conversation of its reference, or a file). What a training left in the model's folder
    is not copied, unless `keep_all`. Everything is checked before the first byte; `output` appears
    whole, by one rename; `overwrite` replaces an older one, `link` makes hard links of unchanged
    weight files. `dry_run` returns the plan and writes nothing. Raises DcSurgeryError of the
    fitting kind; the source is never changed.
    """
    started = time.perf_counter()
    target = wanted_output(output, dry_run=dry_run)
    asked = _request(model, target, **options)
    checkpoint, plan, needed = asked.open()
    if target is None:
        return ConversionPlan(plan, needed)
    sources = checkpoint.folders
    if dry_run:
        check_output(target, overwrite=asked.overwrite, sources=sources, needed=needed)
        return ConversionPlan(plan, needed, target)
    if plan.form != "delta" and not checkpoint.is_local:
        check_output(target, overwrite=asked.overwrite, needed=needed)  # before a long download
        checkpoint, plan, needed = asked.open(weights=True)
        sources = checkpoint.folders
    staging = staged_output(target, overwrite=asked.overwrite, sources=sources, needed=needed)
    with staging as folder:
        delta = planned_delta(checkpoint, plan)
        if plan.form == "reference":
            transfers = write_reference(checkpoint, plan, delta, folder, asked.tower)
        else:
            stock = stock_tensors(checkpoint, plan, delta) if plan.form != "delta" else {}
            written = write_folder(checkpoint, plan, folder, delta, stock, link=asked.link)
            plan, transfers = written
    return Conversion(plan, target, transfers, time.perf_counter() - started)


@dataclass(frozen=True)
class _Request:
    """What convert was asked for."""

    model: str | Path
    output: Path | None
    connector: Connector
    revision: str | None = None
    overwrite: bool = False
    link: bool = False
    towers: Mapping[str, str] | None = None
    keep_all: bool = False
    template: str | None = None

    @property
    def tower(self) -> str | None:
        """What the reference form calls the tower."""
        return (self.towers or {}).get(TOWER_KEY)

    def open(self, *, weights: bool = False) -> tuple[Checkpoint, SurgeryPlan, int]:
        """Return the model, its plan, and an upper bound of the bytes to write."""
        # The reference form needs the tower's name also where the model holds the tower.
        hints = told(self.towers, self.template, optional=self.connector.form == "reference")
        options: dict[str, Any] = {"hints": hints, "keep_all": self.keep_all}
        checkpoint = open_model(self.model, self.revision, weights=weights, **options)
        _require_unconverted(checkpoint)
        plan = make_plan(checkpoint, self.connector)
        return checkpoint, plan, self._bytes_to_write(checkpoint, plan)

    def _bytes_to_write(self, checkpoint: Checkpoint, plan: SurgeryPlan) -> int:
        delta = planned_delta(checkpoint, plan)
        small = sum(item.nbytes for item in delta.values()) + 256 * 1024
        if plan.form == "delta":
            return small
        if plan.form == "reference":
            shown = reference_checkpoint(checkpoint, plan, delta, self.tower)
            return small + estimate_bytes(shown, {})
        linked = self.link and can_link(checkpoint, self.output)
        stock = stock_tensors(checkpoint, plan, delta)
        return small + estimate_bytes(checkpoint, stock, linked=linked)


def _request(
    model: str | Path,
    output: Path | None,
    *,
    connector: Connector | str | None = None,
    **options: Any,
) -> _Request:
    own = {field.name for field in fields(_Request)} & options.keys()
    plain = {name: options.pop(name) for name in own}
    return _Request(model, output, Connector.of(connector, **options), **plain)


def _require_unconverted(checkpoint: Checkpoint) -> None:
    """Raise PlanError for our own output, or a file where the connector would be written."""
    if PLAN_FILE in checkpoint.side_files:
        raise PlanError(
            f"{checkpoint.ref.name} was already converted by dcsurgery",
            hint=f"convert its base again; {PLAN_FILE} names it",
        )
    names = [file.name for file in checkpoint.weights] + list(checkpoint.side_files)
    clash = next((name for name in names if name.split("/")[0] == DELTA_FOLDER), None)
    if clash is not None:
        raise PlanError(
            f"{checkpoint.ref.name} holds {clash}, where the connector would be written",
            hint="move it out of the model's folder if the model does not need it",
        )


def can_link(checkpoint: Checkpoint, output: Path | None) -> bool:
    """Return whether weight files can be hard links in an output (anywhere when None)."""
    source = checkpoint.ref.folder
    if source is None or isinstance(checkpoint, Adopted) or checkpoint.ref.in_cache:
        return False
    return output is None or on_same_disk(source, output)


def edit_config(checkpoint: Checkpoint, plan: SurgeryPlan) -> str:
    """Return the config's text with the plan's keys changed, all others in place and order."""
    if plan.form == "portable":
        keys = portable_config(checkpoint, plan.anatomy, plan.layout)
        return render_object({**checkpoint.config, **keys}, CONFIG)
    if plan.stock_layers is None:
        return checkpoint.config_text
    stock_config = find_architecture(checkpoint.config).stock_config
    if stock_config is None:
        raise AssertionError(f"{plan.architecture} has no stock form")
    return render_object(stock_config(checkpoint.config, plan.stock_layers), CONFIG)


def write_folder(
    checkpoint: Checkpoint,
    plan: SurgeryPlan,
    folder: Path,
    delta: Mapping[str, NewTensor],
    stock: Mapping[str, NewTensor],
    *,
    link: bool = False,
) -> tuple[SurgeryPlan, tuple[Transfer, ...]]:
    """Write a plan's whole output into an empty folder; return the plan with every hash.

    `delta` are the tensors of its delta, `stock` those that replace the base's in a stock form.
    """
    relies_on = {name: digest(checkpoint.tensor_chunks(name)) for name in plan.relies_on}
    make_folder(folder / DELTA_FOLDER)
    own = [delta[record.name] for record in plan.delta if record.file == DELTA_FILE]
    written = write_tensors(folder / DELTA_FILE, own, METADATA)
    transfers = [replace(written, file=DELTA_FILE)]
    if plan.form != "delta":
        config = edit_config(checkpoint, plan)
        transfers += write_checkpoint(checkpoint, folder, stock, config, link=link)
    if plan.form == "portable":
        transfers.append(_write_text(folder, CODE_FILE, code_text()))
    plan = plan.model_copy(
        update={
            "relies_on": relies_on,
            "delta": [_hashed(r, delta, {}) for r in plan.delta],
            "changed": [_hashed(r, stock, relies_on) for r in plan.changed],
        }
    )
    transfers.append(_write_text(folder, PLAN_FILE, plan.model_dump_json(indent=2) + "\n"))
    processor = _write_processor(checkpoint, plan, folder)
    again = {item.file for item in processor}
    transfers = [*(item for item in transfers if item.file not in again), *processor]
    if plan.form == "delta":
        transfers.append(_write_text(folder, "README.md", delta_readme(plan)))
    checkpoint.require_unchanged()
    return plan, tuple(transfers)


def _write_processor(checkpoint: Checkpoint, plan: SurgeryPlan, folder: Path) -> list[Transfer]:
    """Write the processor that the plan changes: AutoProcessor then fits the output.

    A delta gets all of its files, as does one of an adopted base, whose files are in no folder.
    """
    names = [] if plan.form == "stock" else processor_files(checkpoint)
    if not plan.processor_changes:
        names = names if isinstance(checkpoint, Adopted) else []
    files = {name: checkpoint.read_file(name) for name in names}
    if plan.processor_changes:
        files[PROCESSOR_FILE] = planned_processor(checkpoint, plan)
    transfers = []
    for name, content in files.items():
        make_folder((folder / name).parent)
        (folder / name).unlink(missing_ok=True)
        transfers.append(Transfer(name, "write", write_file(folder / name, [content])))
    return transfers


def _hashed(
    record: TensorRecord, written: Mapping[str, NewTensor], base: Mapping[str, str]
) -> TensorRecord:
    update: dict[str, Any] = {"sha256": written[record.name].sha256}
    base_sha256 = base.get(record.name, record.base_sha256)
    return record.model_copy(update=update | {"base_sha256": base_sha256})


def _write_text(folder: Path, name: str, text: str) -> Transfer:
    return Transfer(name, "write", write_file(folder / name, [text.encode()]))
