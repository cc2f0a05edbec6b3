"""Take a stage that was trained elsewhere into a run, once it is clear that it is that stage."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.digests import digest
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.errors import RequestError, VerificationError
from dcsurgery.recipes import resolve, smoke
from dcsurgery.recipes.runner import check_work, input_hash, read_source
from dcsurgery.recipes.schema import Finetune
from dcsurgery.recipes.stamps import Stamp, describe_output, is_done, write_stamp
from dcsurgery.recipes.steps import Step, build_steps
from dcsurgery.surgery.plan_file import SurgeryPlan, TrainingRecord, read_plan
from dcsurgery.surgery.planned_tensors import stored_delta
from dcsurgery.training.settings import FREE, TrainingSettings

# What a conversion decides, the same before and after any training.
INSTALLED = ("layout", "form")


def adopt_step(
    name_or_file: str,
    step: str,
    folder: str | Path,
    *,
    changes: tuple[str, ...] = (),
    work_dir: str | Path | None = None,
    data_dir: str | Path = ".",
) -> Stamp:
    """Copy a trained model into a run as the result of its stage `step`; return the stamp.

    What the plan in `folder` says must be what the stage would have done: the same base and
    connector, the trainings before it, its settings, its data. What of it stayed untouched must be
    as the step before left it. Raises RequestError that names what differs, VerificationError
    when weights are not those of the plan.
    """
    source, folder = read_source(name_or_file, changes), Path(folder)
    if source.recipe.sweep:
        raise RequestError("a sweep has several runs", hint="adopt into a recipe without one")
    work, data = Path(work_dir or f"{source.recipe.name}.run"), Path(data_dir)
    recipe = smoke.shrink(source.recipe) if source.smoke else source.recipe
    data = work / smoke.WORLD if source.smoke else data
    steps = build_steps(recipe)
    place = next((n for n, item in enumerate(steps) if item.name == step and item.stage), None)
    if place is None:
        stages = ", ".join(item.name for item in steps if item.stage)
        raise RequestError(f"{step} is no training of this recipe", hint=f"trainings: {stages}")
    check_work(work, steps, small=False)
    resolve.require_data(recipe, steps[: place + 1], data)
    base, digests = resolve.pin_base(recipe, data), resolve.pin_data(steps[: place + 1], data)
    stamps: dict[str, Stamp] = {}
    for item in steps[:place]:
        wanted = input_hash(item, stamps, base, digests)
        found = is_done(work, item.name, wanted, item.output)
        if found is None:
            before = f"dcsurgery recipe run {name_or_file} --work-dir {work} --until {item.name}"
            raise RequestError(f"{item.name} is not done yet in {work}", hint=before)
        stamps[item.name] = found
    chosen = steps[place]
    record = _check(folder, work / chosen.after[0], chosen, digests)
    output = work / step
    if folder.resolve() != output.resolve():
        with staged_output(output, overwrite=True, sources=[folder]) as staging:
            shutil.copytree(folder, staging, dirs_exist_ok=True)
    result: dict[str, Any] = {"training": record.model_dump(mode="json"), "adopted": str(folder)}
    wanted = input_hash(chosen, stamps, base, digests)
    outputs = describe_output(work, chosen.output)
    stamp = Stamp(step, wanted, result, outputs, record.seconds, record.versions)
    write_stamp(work, stamp)
    return stamp


def _check(folder: Path, before: Path, step: Step, digests: dict[str, str]) -> TrainingRecord:
    """Return the record of a stage's training. Raises RequestError or VerificationError."""
    plan, parent = read_plan(folder), read_plan(before)
    assert step.stage is not None
    if not plan.training:
        raise RequestError(f"{folder} was never trained", hint="train it, or run the recipe")
    record = plan.training[-1]
    different = _other_surgery(plan, parent) + _other_training(record, step.stage)
    if record.data_sha256 != digests[step.stage.data]:
        different.append(f"the data is not {step.stage.data}")
    if different:
        raise RequestError(
            f"{folder} is not the result of {step.name}: {'; '.join(different)}",
            hint="`dcsurgery recipe show` prints what the stage does; --set changes it",
        )
    stored = stored_delta(folder, plan)
    for item in plan.delta:
        if digest(stored[item.name].chunks()) != item.sha256:
            raise VerificationError(
                f"{folder}: {item.name} is not what its plan says", hint="copy the folder again"
            )
    return record


def _other_surgery(plan: SurgeryPlan, parent: SurgeryPlan) -> list[str]:
    found = [
        f"{key} is {getattr(plan, key)}, not {getattr(parent, key)}"
        for key in INSTALLED
        if getattr(plan, key) != getattr(parent, key)
    ]
    if any(getattr(plan.base, k) != getattr(parent.base, k) for k in ("config_sha256", "files")):
        found.append("it has another base")
    if plan.training[:-1] != parent.training:
        found.append("other trainings came before it")
    moved = set(plan.training[-1].trained)
    now = {item.name: item.sha256 for item in plan.delta}
    found += [
        f"{item.name} was not trained and is another"
        for item in parent.delta
        if item.name not in moved and now.get(item.name) != item.sha256
    ]
    return found


def _other_training(record: TrainingRecord, stage: Finetune) -> list[str]:
    was = asdict(TrainingSettings(**record.settings).resolved())
    wanted = asdict(stage.settings().resolved())
    other = [key for key in wanted if key not in FREE and was[key] != wanted[key]]
    found = [f"{key} was {was[key]}, not {wanted[key]}" for key in other]
    if record.columns != stage.columns:
        found.append(f"columns were {record.columns}, not {stage.columns}")
    return found
