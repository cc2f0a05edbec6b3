"""The changed tensors of a stock form, made once more from base, delta and adapter."""

from __future__ import annotations

from pathlib import Path

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import digest, same_bytes
from dcsurgery.checkpoint.rewrite import NewTensor
from dcsurgery.errors import DcSurgeryError
from dcsurgery.surgery.merge_lora import open_adapter
from dcsurgery.surgery.plan_file import ADAPTER_FOLDER, SurgeryPlan, TensorRecord
from dcsurgery.surgery.planned_tensors import stock_tensors, stored_delta, tensor_rows
from dcsurgery.surgery.trained_plan import merged_tensors
from dcsurgery.verification.report import Check, judge

# Relative to the largest value: two units in the last place, in fp32 those of a long sum.
MERGE_LIMITS = {"F64": 2**-18, "F32": 2**-18, "F16": 2**-9, "BF16": 2**-6}


def fold_check(plan: SurgeryPlan, folder: Path, base: Checkpoint, stock: Checkpoint) -> Check:
    """Make the changed tensors again, from delta and base, and compare with what is on disk."""
    name, limit = "changed tensors are as planned", "base + delta, folded or joined"
    try:
        wanted = _made_again(plan, folder, base)
    except DcSurgeryError as error:
        return judge(name, [error.message], "cannot be made again", limit)
    problems = []
    for record in plan.changed:
        problem = _unlike(stock, record, wanted[record.name], record.name in merged_tensors(plan))
        problems += [] if problem is None else [f"{record.name} {problem}"]
    shapes = ", ".join(
        f"{record.base_shape} to {record.shape}"
        for record in plan.changed
        if record.base_shape != record.shape
    )
    return judge(name, problems, f"{len(plan.changed)} tensor(s), {shapes}", limit)


def _unlike(stock: Checkpoint, record: TensorRecord, again: NewTensor, merged: bool) -> str | None:
    """Say how a changed tensor on disk is not what it should be; None when it is."""
    found = stock.tensors.get(record.name)
    if found is None or [found.dtype, list(found.shape)] != [record.dtype, record.shape]:
        return f"is not {record.dtype} {record.shape}"
    if digest(stock.tensor_chunks(record.name)) != record.sha256:
        return "has other values than planned"
    if [again.dtype, list(again.shape)] != [record.dtype, record.shape]:
        return f"should be {again.dtype} {list(again.shape)}"
    if not _same(again, stock, merged=merged):
        return "is not what base and delta make"
    return None


def _made_again(plan: SurgeryPlan, folder: Path, base: Checkpoint) -> dict[str, NewTensor]:
    adapter = open_adapter(folder / ADAPTER_FOLDER) if merged_tensors(plan) else None
    return stock_tensors(base, plan, stored_delta(folder, plan), adapter)


def _same(again: NewTensor, stock: Checkpoint, *, merged: bool) -> bool:
    """Compare a tensor with what is on disk: bytes; where an adapter is merged, almost.

    Another machine sums the product in another order, which can round the last bit differently.
    """
    if not merged:
        return same_bytes(again.chunks(), stock.tensor_chunks(again.name))
    found = NewTensor(again.name, again.dtype, again.shape, lambda: stock.tensor_chunks(again.name))
    pairs = zip(tensor_rows(found)(), tensor_rows(again)(), strict=True)
    limit = MERGE_LIMITS[again.dtype]
    return all(bool((abs(a - b) <= limit * abs(b).max()).all()) for a, b in pairs)
