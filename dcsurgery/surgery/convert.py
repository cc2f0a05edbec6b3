"""Apply a plan: write a delta or a stock checkpoint. No model is loaded, torch never imported."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from dcsurgery.architectures import Form, find_architecture
from dcsurgery.checkpoint.checks import render_object
from dcsurgery.checkpoint.contents import CONFIG, Checkpoint
from dcsurgery.checkpoint.copying import Transfer, make_folder, write_file
from dcsurgery.checkpoint.destination import check_output, on_same_disk
from dcsurgery.checkpoint.rewrite import (
    NewTensor,
    estimate_bytes,
    write_checkpoint,
    write_tensors,
)
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.connectors.spec import ConnectorSpec, Layers
from dcsurgery.errors import PlanError, RequestError
from dcsurgery.features import parse_layers
from dcsurgery.originals import Hints, open_model, told
from dcsurgery.originals.adopted import Adopted
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
PROBE_MARK = "@"


@dataclass(frozen=True)
class Preview:
    """A plan and what carrying it out would cost: an upper bound of the bytes written."""

    plan: SurgeryPlan
    bytes_to_write: int


@dataclass(frozen=True)
class Conversion:
    """What was written, where, and how each file came to be."""

    plan: SurgeryPlan
    output: Path
    transfers: tuple[Transfer, ...]
    seconds: float

    @property
    def bytes_written(self) -> int:
        """Bytes physically written; shared blocks and hard links cost none."""
        return sum(item.written for item in self.transfers)


def make_spec(  # noqa: PLR0913 - one keyword per CLI option, by design
    connector: str = "dci",
    groups: int = 2,
    layers: str | Layers | None = None,
    init: str = "preserve",
    seed: int = 0,
    form: str | None = None,
    norm: bool = False,
    pool: int = 1,
) -> ConnectorSpec:
    """Return a ConnectorSpec from plain values; layers "@FILE" are those of a probe in that file.

    Raises RequestError or PlanError.
    """
    if init not in ("preserve", "paper"):
        raise RequestError(f"init {init!r} does not exist", hint="choose preserve or paper")
    if form not in (None, *get_args(Form)):
        raise RequestError(
            f"form {form!r} does not exist", hint=f"choose one of {', '.join(get_args(Form))}"
        )
    if seed < 0:
        raise RequestError(f"seed {seed} is negative", hint="choose a seed of 0 or more")
    probe = None
    if isinstance(layers, str) and layers.startswith(PROBE_MARK):
        probe, layers = layers.removeprefix(PROBE_MARK), None
    parsed = parse_layers(layers) if isinstance(layers, str) else layers
    chosen: dict[str, Any] = {"init": init, "form": form, "norm": norm, "pool": pool}
    return ConnectorSpec(connector, groups, parsed, seed=seed, probe=probe, **chosen)


def preview_conversion(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    spec: ConnectorSpec,
    *,
    revision: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    link: bool = False,
    towers: Mapping[str, str] | None = None,
    keep_all: bool = False,
    template: str | None = None,
) -> Preview:
    """Return the whole plan without writing anything; a Hub model's weights are not fetched.

    Raises whatever convert_checkpoint would refuse.
    """
    checkpoint = _open(model, revision, _hints(spec, towers, template), keep_all)
    plan = make_plan(checkpoint, spec)
    target = Path(output) if output is not None else None
    needed = _bytes_to_write(checkpoint, plan, target, link, towers)
    if target is not None:
        check_output(target, overwrite=overwrite, sources=checkpoint.folders, needed=needed)
    return Preview(plan, needed)


def convert_checkpoint(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    output: str | Path,
    *,
    connector: str = "dci",
    groups: int = 2,
    layers: str | Layers | None = None,
    init: str = "preserve",
    seed: int = 0,
    form: str | None = None,
    norm: bool = False,
    pool: int = 1,
    revision: str | None = None,
    overwrite: bool = False,
    link: bool = False,
    towers: Mapping[str, str] | None = None,
    keep_all: bool = False,
    template: str | None = None,
) -> Conversion:
    """Install a connector in a model and write the result to `output`.

    `model` is a folder or a Hub id; `towers` says where the vision tower is that a model in its
    original format names (its name -> folder or Hub id), `template` how its prompts are written (a
    conversation of its reference, or a file). What a training left in the model's folder is not
    copied, unless `keep_all`. Everything is checked before the first
    byte; `output` appears whole, by one rename. Raises DcSurgeryError of the fitting kind; the
    source is never changed.
    """
    started = time.perf_counter()
    spec = make_spec(connector, groups, layers, init, seed, form, norm, pool)
    hints = _hints(spec, towers, template)
    checkpoint = _open(model, revision, hints, keep_all)
    plan = make_plan(checkpoint, spec)
    target = Path(output)
    needed = _bytes_to_write(checkpoint, plan, target, link, towers)
    if plan.form != "delta" and not checkpoint.is_local:
        check_output(target, overwrite=overwrite, needed=needed)  # before a long download
        checkpoint = _open(model, revision, hints, keep_all, weights=True)
        plan = make_plan(checkpoint, spec)
        needed = _bytes_to_write(checkpoint, plan, target, link, towers)
    staging = staged_output(target, overwrite=overwrite, sources=checkpoint.folders, needed=needed)
    with staging as folder:
        delta = planned_delta(checkpoint, plan)
        if plan.form == "reference":
            named = (towers or {}).get(TOWER_KEY)
            transfers = write_reference(checkpoint, plan, delta, folder, named)
            return Conversion(plan, target, transfers, time.perf_counter() - started)
        stock = stock_tensors(checkpoint, plan, delta) if plan.form != "delta" else {}
        plan, transfers = write_folder(checkpoint, plan, folder, delta, stock, link=link)
    return Conversion(plan, target, transfers, time.perf_counter() - started)


def _hints(spec: ConnectorSpec, towers: Mapping[str, str] | None, template: str | None) -> Hints:
    # The reference form needs the tower's name also where the model holds the tower.
    return told(towers, template, optional=spec.form == "reference")


def _open(
    model: str | Path, revision: str | None, hints: Hints, keep_all: bool, *, weights: bool = False
) -> Checkpoint:
    checkpoint = open_model(model, revision, weights=weights, hints=hints, keep_all=keep_all)
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
    return checkpoint


def _bytes_to_write(
    checkpoint: Checkpoint,
    plan: SurgeryPlan,
    output: Path | None,
    link: bool,
    towers: Mapping[str, str] | None,
) -> int:
    delta = planned_delta(checkpoint, plan)
    small = sum(item.nbytes for item in delta.values()) + 256 * 1024
    if plan.form == "delta":
        return small
    if plan.form == "reference":
        return small + estimate_bytes(
            reference_checkpoint(checkpoint, plan, delta, (towers or {}).get(TOWER_KEY)), {}
        )
    linked = link and can_link(checkpoint, output)
    return small + estimate_bytes(checkpoint, stock_tensors(checkpoint, plan, delta), linked=linked)


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
    relies_on = {
        name: hashlib.sha256(checkpoint.read_tensor(name)).hexdigest() for name in plan.relies_on
    }
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
