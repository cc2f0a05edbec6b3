"""What a training may have changed: the tensors its record names, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import digest, file_bytes
from dcsurgery.errors import DcSurgeryError
from dcsurgery.surgery.merge_lora import Adapter, merge_problem, open_adapter
from dcsurgery.surgery.plan_file import (
    ADAPTER_FOLDER,
    CONNECTOR_PREFIX,
    PLAN_FILE,
    SurgeryPlan,
    TrainingRecord,
)
from dcsurgery.verification.report import Check

TRAINED_CHECK = "only trained tensors differ"
ADAPTER_CHECK = "LoRA adapter is as planned"


def trained_check(plan: SurgeryPlan, base: Checkpoint) -> Check:
    """Check that the delta replaces what a training names, and that of this very base."""
    trained = {name for record in plan.training for name in record.trained}
    count = len(trained & base.tensors.keys())
    told = "; ".join(map(_told, plan.training))
    problems = list(_unnamed(plan, base, trained))
    return Check(
        TRAINED_CHECK,
        not problems,
        f"{told}: {count} of {len(base.tensors)} tensors",
        "what the training names",
        "; ".join(problems[:5]),
    )


def _told(record: TrainingRecord) -> str:
    return f"{record.train}, {record.steps} steps"


def _unnamed(plan: SurgeryPlan, base: Checkpoint, trained: set[str]) -> Iterator[str]:
    drawn = plan.anatomy.projector.tensors if plan.init == "paper" else ()
    for record in plan.delta:
        if record.name.startswith(CONNECTOR_PREFIX):
            continue
        if record.name not in trained and record.name not in drawn:
            yield f"{record.name} is replaced, and no training names it"
        # Tensors that were drawn have none of their own in the record.
        elif record.base_sha256 not in (None, digest(base.tensor_chunks(record.name))):
            yield f"the base's {record.name} is not the one that was trained"


def adapter_check(plan: SurgeryPlan, folder: Path) -> Check:
    """Check an adapter's files against the plan's record of them."""
    stated = plan.adapter
    place = folder / ADAPTER_FOLDER
    if stated is None:
        present = place.exists()
        detail = f"{ADAPTER_FOLDER} exists, but {PLAN_FILE} does not mention it" if present else ""
        return Check(ADAPTER_CHECK, not present, "no adapter", "none is planned", detail)
    problems = [
        f"{ADAPTER_FOLDER}/{name} has other bytes than planned"
        for name, wanted in stated.files.items()
        if not (place / name).is_file() or digest(file_bytes(place / name)) != wanted
    ]
    count = len(stated.targets)
    try:
        adapter = open_adapter(place)
        count = len(adapter.modules)
        problems += _misplaced(plan, adapter)
    except DcSurgeryError as error:
        problems.append(error.message)
    where = "merged into the weights" if stated.merged else "beside the weights"
    measured = f"{count} matrices adapted, {where}"
    return Check(ADAPTER_CHECK, not problems, measured, "equal", "; ".join(problems[:5]))


def _misplaced(plan: SurgeryPlan, adapter: Adapter) -> Iterator[str]:
    targets = plan.adapter.targets if plan.adapter is not None else {}
    if more := sorted(targets.keys() - set(adapter.modules)):
        yield f"{PLAN_FILE} names {more[0]}, which the adapter does not adapt"
    if plan.adapter is not None and plan.adapter.merged:
        problem = merge_problem(adapter, targets)
        if problem is not None:
            yield f"it cannot be what was merged: {problem}"
