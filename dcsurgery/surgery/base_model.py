"""The base of a plan: find it on this machine, and see that it is the very same one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from dcsurgery.checkpoint.contents import Checkpoint, open_checkpoint
from dcsurgery.checkpoint.digests import digest
from dcsurgery.errors import CheckpointNotFoundError, MalformedCheckpointError
from dcsurgery.originals import Hints, open_model
from dcsurgery.originals.adopted import (
    Adopted,
    Adoption,
    Presented,
    Template,
    TowerRecord,
    present,
)
from dcsurgery.surgery.plan import describe_base
from dcsurgery.surgery.plan_file import PLAN_FILE, SurgeryPlan
from dcsurgery.surgery.portable import CODE_FILE, first_columns

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


def base_within(folder: Path, plan: SurgeryPlan) -> Adopted:
    """Present the base that a portable folder holds: W without D, the config without our keys.

    What was trained has its trained values. Raises CheckpointError for a folder that is broken.
    """
    whole = open_checkpoint(folder)
    files = [
        [_base_part(whole, plan, name) for name in file.header.tensors if _is_base(plan, name)]
        for file in whole.weights
    ]
    config = {**whole.config}
    for key, change in plan.config_changes.items():
        config[key] = change["from"]
        if change["from"] is None:
            del config[key]
    source = Adoption(whole, "portable", str(config["architectures"][0]))
    kept = [name for name in whole.side_files if name not in (CODE_FILE, PLAN_FILE)]
    return present(source, files, config, {}, kept, indexed=whole.index is not None)


def _is_base(plan: SurgeryPlan, name: str) -> bool:
    return all(item.name != name or item.base_shape is not None for item in plan.changed)


def _base_part(whole: Checkpoint, plan: SurgeryPlan, name: str) -> Presented:
    record = next((item for item in plan.changed if item.name == name), None)
    entry = whole.tensors[name]
    if record is None or record.base_shape is None or record.base_shape == record.shape:
        return Presented.renamed(whole, name, name)
    shape = tuple(record.base_shape)
    made = partial(first_columns, whole, record)
    return Presented(name, entry.dtype, shape, whole, name, made)


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
            hint="say where it is now: finetune, export, eval and ask take --base FOLDER, verify "
            "and push --against FOLDER; in Python base=FOLDER",
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
    for name, wanted in plan.relies_on.items() if problem is None else ():
        if name not in checkpoint.tensors:
            problem = f"it has no tensor {name}"
        elif digest(checkpoint.tensor_chunks(name)) != wanted:
            problem = f"tensor {name} has other values"
    if problem is not None:
        raise MalformedCheckpointError(
            f"{checkpoint.ref.name} is not the base this connector was made for: {problem}",
            hint=f"the base was {plan.base.id}"
            + (f" at commit {plan.base.commit}" if plan.base.commit else "")
            + "; convert this model instead to use it",
        )
