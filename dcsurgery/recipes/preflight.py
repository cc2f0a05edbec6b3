"""What would stop a run hours after its start, asked before its first step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.printing.units import size
from dcsurgery.recipes.data_check import QUICK, check_data
from dcsurgery.recipes.schema import Recipe
from dcsurgery.recipes.sizes import Sizes, held_on_gpu, peak, sizes_of
from dcsurgery.recipes.steps import Place, Step

WAYS = ("none", "zero2", "zero3", "fsdp2")
# Asked in a process of its own: one that has asked keeps half a gigabyte of every GPU.
ASK = (
    "import json, torch; "
    "print(json.dumps([torch.cuda.mem_get_info(n) for n in range(torch.cuda.device_count())]))"
)


def check_start(recipe: Recipe, steps: Sequence[Step], place: Place) -> None:
    """Raise an error that names every reason for which one of the steps to do would fail.

    Rows and pictures are looked at in samples, disk and memory compared with what headers say, the
    Hub asked whether it may be pushed to. Nothing is written.
    """
    found: list[DcSurgeryError] = []
    checks = [_check_data, _check_push]
    if any(step.name.split("-")[0] in ("convert", "finetune", "export") for step in steps):
        checks.append(_check_room)
    for check in checks:
        try:
            check(recipe, steps, place)
        except DcSurgeryError as error:
            found.append(error)
    if len(found) == 1:
        raise found[0]
    if found:
        raise RequestError(
            "; ".join(error.message for error in found),
            hint="; ".join(error.hint for error in found),
        )


def _check_data(recipe: Recipe, steps: Sequence[Step], place: Place) -> None:
    names = {step.name for step in steps}
    found = check_data(recipe, place.data, steps=names, sample=QUICK)
    if found.problems:
        raise RequestError(
            "; ".join(f"{step}: {why}" for step, why in found.problems.items()),
            hint=f"dcsurgery recipe data {recipe.name} --data-dir {place.data}",
        )


def _check_push(recipe: Recipe, steps: Sequence[Step], place: Place) -> None:
    """Ask whether the account may write to the repository. Raises PublishError."""
    options = recipe.publish
    wanted = any(step.name == "publish" for step in steps) and not place.offline
    if not wanted or options is None or options.repo is None:
        return
    from dcsurgery.publishing.push import ask_permission

    ask_permission(
        options.repo,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
    )


def _check_room(recipe: Recipe, steps: Sequence[Step], place: Place) -> None:
    """Compare disk and GPUs with what the steps need. Raises RequestError, PlanError and others."""
    sizes = sizes_of(recipe, place)
    said = [text for text in (_disk(sizes, steps, place), *_gpus(sizes, steps, place)) if text]
    if said:
        raise RequestError("; ".join(text for text, _ in said), hint="; ".join(h for _, h in said))


def _disk(sizes: Sizes, steps: Sequence[Step], place: Place) -> tuple[str, str] | None:
    """Return what is missing on the disk of the work folder, and what would help; None if nothing.

    Steps that ran before with other inputs are replaced only once the new one is whole.
    """
    most, each = peak(sizes, steps, place.work)
    needs = {place.work: most}
    if sizes.to_fetch and any(step.name == "convert" for step in steps):
        from huggingface_hub import constants

        needs[Path(constants.HF_HUB_CACHE)] = sizes.to_fetch
        each = {"the base": sizes.to_fetch, **each}
    disks: dict[int, list[tuple[Path, int]]] = {}
    for folder, amount in needs.items():
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        disks.setdefault(there.stat().st_dev, []).append((there, amount))
    for places in disks.values():
        wanted, free = sum(amount for _, amount in places), shutil.disk_usage(places[0][0]).free
        if wanted <= free:
            continue
        parts = ", ".join(f"{name} {size(amount)}" for name, amount in each.items())
        text = f"{size(wanted)} are needed at {places[0][0]}, {size(free)} are free ({parts})"
        hint = "free some space, or choose another --work-dir"
        if any(step.stage is not None for step in steps):
            hint += "; --set finetune.save_steps=0 leaves checkpoints out"
        return text, hint
    return None


def _gpus(sizes: Sizes, steps: Sequence[Step], place: Place) -> list[tuple[str, str]]:
    """Return which trainings the GPUs of this machine have no room for, and what would help."""
    stages = [step for step in steps if step.stage is not None]
    gpus = gpu_memory() if stages else []
    if not gpus or place.launch.config is not None:  # that file says how memory is shared
        return []
    found = []
    for step in stages:
        assert step.stage is not None
        count, (way, _) = place.launch.of(step.stage), place.launch.way(step.stage)
        free = min(room for room, _ in gpus[: max(1, count // place.launch.machines)])
        need = held_on_gpu(sizes, step.stage, way, count)
        if need <= free:
            continue
        fits = [w for w in WAYS if count > 1 and held_on_gpu(sizes, step.stage, w, count) < free]
        text = f"{step.name}: weights, gradients and AdamW take {size(int(need))} on each GPU"
        number = step.name.rpartition("-")[2]
        field = f"finetune.{int(number) - 1}"
        help_ = f"--set {field}.sharding={fits[0]}" if fits else f"--set {field}.train=lora"
        more = "" if fits else ", or more --processes with sharding zero3"
        text += f" (sharding: {way}), of which {size(free)} are free"
        found.append((text, f"{help_}{more}"))
    return found


def gpu_memory() -> list[tuple[int, int]]:
    """Return (free, all) bytes of every GPU of this machine; [] where there is none."""
    import torch

    if not torch.cuda.device_count():
        return []
    told = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True)
    if told.returncode:
        return []  # the step itself says what is wrong with the driver
    return [(free, whole) for free, whole in json.loads(told.stdout.splitlines()[-1])]
