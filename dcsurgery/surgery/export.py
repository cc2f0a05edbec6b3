"""A trained connector as a checkpoint that plain transformers loads. torch is never imported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, overload

from dcsurgery.architectures import Form
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.checkpoint.destination import check_output
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.checkpoint.rewrite import NewTensor, estimate_bytes
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.errors import PlanError, RequestError
from dcsurgery.fields import either
from dcsurgery.surgery.base_model import open_base
from dcsurgery.surgery.conversion import Conversion, ConversionPlan, wanted_output
from dcsurgery.surgery.convert import can_link, write_folder
from dcsurgery.surgery.merge_lora import Adapter, copy_adapter, merge_problem, open_adapter
from dcsurgery.surgery.paper_form import TOWER_KEY, reference_checkpoint, write_reference
from dcsurgery.surgery.plan_file import (
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    DELTA_FILE,
    SurgeryPlan,
    read_plan,
)
from dcsurgery.surgery.planned_tensors import adapted_tensors, stock_tensors, stored_delta
from dcsurgery.surgery.trained_plan import as_complete, as_reference

FORMS = ("stock", "portable", "reference")


class ExportOptions(TypedDict, total=False):
    """The keywords of export_checkpoint."""

    form: str
    base: str | Path | None
    keep_lora: bool
    revision: str | None
    overwrite: bool
    link: bool
    towers: Mapping[str, str] | None


@overload
def export_checkpoint(
    model: str | Path,
    output: str | Path,
    *,
    dry_run: Literal[False] = ...,
    **options: Unpack[ExportOptions],
) -> Conversion: ...


@overload
def export_checkpoint(
    model: str | Path,
    output: str | Path | None = ...,
    *,
    dry_run: Literal[True],
    **options: Unpack[ExportOptions],
) -> ConversionPlan: ...


def export_checkpoint(
    model: str | Path,
    output: str | Path | None = None,
    *,
    dry_run: bool = False,
    **options: Unpack[ExportOptions],
) -> Conversion | ConversionPlan:
    """Fold a trained connector, and what was trained with it, into a complete checkpoint.

    `model` is a folder (or Hub id, at `revision`) that convert or finetune wrote, in either form;
    `base` says where its base is now. `form` is "stock" (plain transformers loads it), "portable"
    (it brings the connector's code along) or "reference" (the reference's own code loads it;
    `towers` as convert takes it). A LoRA adapter is merged into the matrices it adapts, or kept
    beside the weights in peft's own files (`keep_lora`). No model is loaded; `output` appears
    whole, by one rename; `overwrite` and `link` as in convert. `dry_run` returns the plan and
    writes nothing. Raises PlanError where the family has no such form, DcSurgeryError otherwise.
    """
    started = time.perf_counter()
    target = wanted_output(output, dry_run=dry_run)
    job = _prepare(model, target, **options)
    if target is None:
        return ConversionPlan(job.after, job.needed)
    place: dict[str, Any] = {"overwrite": options.get("overwrite", False), "needed": job.needed}
    place["sources"] = [*job.base.folders, job.folder]
    if dry_run:
        check_output(target, **place)
        return ConversionPlan(job.after, job.needed, target)
    with staged_output(target, **place) as new:
        if job.after.form == "reference":
            plan = job.after
            transfers = write_reference(job.base, job.plan, job.delta, new, job.tower)
        else:
            plan, transfers = write_output(
                job.base, job.after, new, job.delta, job.adapter, link=options.get("link", False)
            )
    return Conversion(plan, target, transfers, time.perf_counter() - started)


@dataclass(frozen=True)
class _Export:
    """An export up to its first byte: the plan of the model in `folder`, and the one `after` it."""

    plan: SurgeryPlan
    after: SurgeryPlan
    folder: Path
    base: Checkpoint
    delta: dict[str, NewTensor]
    adapter: Adapter | None
    tower: str | None
    needed: int


def _prepare(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    output: Path | None,
    *,
    form: str = "stock",
    base: str | Path | None = None,
    keep_lora: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    link: bool = False,
    towers: Mapping[str, str] | None = None,
) -> _Export:
    if form not in FORMS:
        raise RequestError(f"form {form!r} does not exist", hint=f"choose {either(FORMS)}")
    if form == "reference" and keep_lora:
        raise RequestError(
            "the reference form has no place for an adapter", hint="leave out --keep-lora"
        )
    folder = local_folder(model, revision)
    plan = read_plan(folder)
    adapter = trained_adapter(plan, folder, keep=keep_lora)
    checkpoint = open_base(plan, base)
    delta = stored_delta(folder, plan)
    tower = (towers or {}).get(TOWER_KEY)
    if form == "reference":
        if adapter is not None and plan.adapter is not None:
            delta |= adapted_tensors(checkpoint, plan.adapter, delta, adapter)
        after = as_reference(plan)
        needed = estimate_bytes(reference_checkpoint(checkpoint, plan, delta, tower), {})
    else:
        after = as_complete(checkpoint, plan, cast(Form, form), merge=not keep_lora)
        needed = bytes_to_write(checkpoint, after, delta, adapter, output=output, link=link)
    return _Export(plan, after, folder, checkpoint, delta, adapter, tower, needed)


def trained_adapter(
    plan: SurgeryPlan, folder: Path, *, keep: bool = False, hint: str = "use --keep-lora"
) -> Adapter | None:
    """Open a folder's adapter, if it has one. Raises PlanError when it is to be merged and cannot
    be.
    """
    if plan.adapter is None:
        return None
    adapter = open_adapter(folder / ADAPTER_FOLDER)
    problem = None if keep else merge_problem(adapter, plan.adapter.targets)
    if problem is not None:
        raise PlanError(f"the LoRA adapter cannot be merged: {problem}", hint=hint)
    return adapter


def bytes_to_write(
    checkpoint: Checkpoint,
    plan: SurgeryPlan,
    delta: Mapping[str, NewTensor],
    adapter: Adapter | None = None,
    output: Path | None = None,
    link: bool = False,
) -> int:
    """Return an upper bound of the bytes that write_output writes.

    With an `output`, `link` leaves out the weight files that would be hard links there.
    """
    small = sum(delta[item.name].nbytes for item in plan.delta if item.file == DELTA_FILE)
    small += 256 * 1024
    if adapter is not None:
        small += (adapter.folder / ADAPTER_WEIGHTS).stat().st_size
    if plan.form == "delta":
        return small
    linked = link and output is not None and can_link(checkpoint, output)
    changed = stock_tensors(checkpoint, plan, delta, adapter)
    return small + estimate_bytes(checkpoint, changed, linked=linked)


def write_output(
    checkpoint: Checkpoint,
    plan: SurgeryPlan,
    folder: Path,
    delta: Mapping[str, NewTensor],
    adapter: Adapter | None,
    *,
    link: bool = False,
) -> tuple[SurgeryPlan, tuple[Transfer, ...]]:
    """Write a trained model into an empty folder in the plan's form; return the hashed plan."""
    stock: dict[str, NewTensor] = {}
    if plan.form != "delta":
        stock = stock_tensors(checkpoint, plan, delta, adapter)
    copied: list[Transfer] = []
    if adapter is not None and plan.adapter is not None:
        beside = plan.form != "delta" and not plan.adapter.merged
        copied = copy_adapter(adapter, folder, beside=beside)
    plan, transfers = write_folder(checkpoint, plan, folder, delta, stock, link=link)
    return plan, (*transfers, *copied)
