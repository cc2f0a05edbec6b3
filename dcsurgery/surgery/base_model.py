"""The base of a plan: find it on this machine, and see that it is the very same one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import CheckpointNotFoundError, MalformedCheckpointError
from dcsurgery.originals import Hints, open_model
from dcsurgery.originals.adopted import Template, TowerRecord
from dcsurgery.surgery.plan import describe_base
from dcsurgery.surgery.plan_file import SurgeryPlan

Towers = Mapping[str, str] | None


def open_base(
    plan: SurgeryPlan, base: str | Path | None = None, towers: Towers = None
) -> Checkpoint:
    """Open the base of a plan, on this machine, and check that it is the very same one.

    `towers` says where the vision towers of an original are now. Raises CheckpointNotFoundError
    when it is gone, MalformedCheckpointError when it differs.
    """
    checkpoint = find_base(plan, base, towers)
    check_base(plan, checkpoint)
    return checkpoint


def base_hints(plan: SurgeryPlan, towers: Towers = None) -> Hints:
    """Return what a plan remembers of its base in an original format, and what the user adds."""
    known = {n: TowerRecord(item.place, item.commit) for n, item in plan.base.towers.items()}
    chosen = plan.base.template
    template = None if chosen is None else Template(chosen.name, chosen.text)
    return Hints(towers or {}, template, known)


def find_base(
    plan: SurgeryPlan,
    base: str | Path | None = None,
    towers: Towers = None,
    *,
    weights: bool = True,
) -> Checkpoint:
    """Open what should be the base of a plan, unchecked, on this machine (or not: `weights`).

    Raises CheckpointNotFoundError when it is gone.
    """
    where = base or plan.base.folder or plan.base.id
    revision = plan.base.commit if base is None and plan.base.folder is None else None
    try:
        return open_model(where, revision, weights=weights, hints=base_hints(plan, towers))
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"the base model {str(where)[:200]} is needed and was not found: {error.message}",
            hint="say where it is now: load_model(..., base=FOLDER), verify --against FOLDER",
        ) from None


def check_base(plan: SurgeryPlan, checkpoint: Checkpoint) -> None:
    """Compare config, headers and the projector's bytes with the plan's record.

    Raises MalformedCheckpointError when they differ.
    """
    found = describe_base(checkpoint)
    problem = None
    if found.files != plan.base.files:
        problem = "its weight files have other sizes, names or tensors"
    elif found.config_sha256 != plan.base.config_sha256:
        problem = "its config.json differs"
    for name, digest in plan.relies_on.items() if problem is None else ():
        if name not in checkpoint.tensors:
            problem = f"it has no tensor {name}"
        elif hashlib.sha256(checkpoint.read_tensor(name)).hexdigest() != digest:
            problem = f"tensor {name} has other values"
    if problem is not None:
        raise MalformedCheckpointError(
            f"{checkpoint.ref.name} is not the base this connector was made for: {problem}",
            hint=f"the base was {plan.base.id}"
            + (f" at commit {plan.base.commit}" if plan.base.commit else "")
            + "; convert this model instead to use it",
        )
