"""A trained connector as a checkpoint that plain transformers loads. torch is never imported."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

from dcsurgery.architectures import Form
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.checkpoint.model_ref import fetch, parse_reference
from dcsurgery.checkpoint.rewrite import NewTensor, estimate_bytes
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.errors import CheckpointNotFoundError, PlanError, RequestError
from dcsurgery.surgery.base_model import open_base
from dcsurgery.surgery.convert import Conversion, can_link, write_folder
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


def export_checkpoint(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    output: str | Path,
    *,
    form: str = "stock",
    base: str | Path | None = None,
    keep_lora: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
    link: bool = False,
    towers: Mapping[str, str] | None = None,
) -> Conversion:
    """Fold a trained connector, and what was trained with it, into a complete checkpoint.

    `model` is a folder (or Hub id) that convert or finetune wrote, in either form; `base` says
    where its base is now. `form` is "stock" (plain transformers loads it), "portable" (it
    brings the connector's code along) or "reference" (the reference's own code loads it; `towers`
    as convert_checkpoint takes it). A LoRA adapter is merged into the matrices it adapts, or kept
    beside the weights in peft's own files (`keep_lora`). No model is loaded; `output` appears
    whole, by one rename. Raises PlanError where the family has no
    such form, DcSurgeryError otherwise.
    """
    started = time.perf_counter()
    if form not in FORMS:
        raise RequestError(f"form {form!r} does not exist", hint=f"choose {', '.join(FORMS)}")
    if form == "reference" and keep_lora:
        raise RequestError(
            "the reference form has no place for an adapter", hint="leave out --keep-lora"
        )
    folder = local_folder(model, revision)
    plan = read_plan(folder)
    adapter = _open_adapter(plan, folder, keep_lora)
    checkpoint = open_base(plan, base)
    delta = stored_delta(folder, plan)
    target = Path(output)
    place = partial(
        staged_output, target, overwrite=overwrite, sources=[*checkpoint.folders, folder]
    )
    if form == "reference":
        if adapter is not None and plan.adapter is not None:
            delta |= adapted_tensors(checkpoint, plan.adapter, delta, adapter)
        tower = (towers or {}).get(TOWER_KEY)
        shown = reference_checkpoint(checkpoint, plan, delta, tower)
        with place(needed=estimate_bytes(shown, {})) as new:
            transfers = write_reference(checkpoint, plan, delta, new, tower)
        plan = as_reference(plan)
    else:
        plan = as_complete(checkpoint, plan, cast(Form, form), merge=not keep_lora)
        needed = bytes_to_write(checkpoint, plan, delta, adapter, output=target, link=link)
        with place(needed=needed) as new:
            plan, transfers = write_output(checkpoint, plan, new, delta, adapter, link=link)
    return Conversion(plan, target, transfers, time.perf_counter() - started)


def _open_adapter(plan: SurgeryPlan, folder: Path, keep: bool) -> Adapter | None:
    """Open a folder's adapter. Raises PlanError when it is to be merged and cannot be."""
    if plan.adapter is None:
        return None
    adapter = open_adapter(folder / ADAPTER_FOLDER)
    problem = None if keep else merge_problem(adapter, plan.adapter.targets)
    if problem is not None:
        raise PlanError(f"the LoRA adapter cannot be merged: {problem}", hint="use --keep-lora")
    return adapter


def local_folder(model: str | Path, revision: str | None) -> Path:
    """Return the folder of a converted model, fetched if need be.

    Raises CheckpointNotFoundError.
    """
    found = fetch(parse_reference(model, revision)).folder
    if found is None:
        raise CheckpointNotFoundError(f"{model} was not found", hint="check the path or the Hub id")
    return found


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
