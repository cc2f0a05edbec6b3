"""What a recipe's steps hold in memory and write to disk, known from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.rewrite import estimate_bytes
from dcsurgery.originals import open_model, told
from dcsurgery.recipes.schema import Finetune, Recipe
from dcsurgery.recipes.steps import Place, Step
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import SurgeryPlan

# Bytes of a number in fp32, with AdamW's two in a checkpoint, and in the running average.
FP32, SAVED = 4, 12
# Bytes of plans, logs and plots beside the weights of a step.
SIDE = 256 * 1024
# Bytes of a frozen number by how it is read; 2 is bf16's and fp16's.
FROZEN = {"4bit": 0.5, "8bit": 1.0}


@dataclass(frozen=True)
class Sizes:
    """A base's bytes as a stock copy, and how many numbers its parts have.

    `to_fetch` are the bytes of weights that the Hub's cache does not have yet.
    """

    copy: int
    to_fetch: int
    form: str
    connector: int
    projector: int
    tower: int
    language: int
    matrices: tuple[tuple[int, ...], ...]

    @property
    def numbers(self) -> int:
        """All parameters, the connector's included."""
        return self.connector + self.projector + self.tower + self.language

    def trained(self, stage: Finetune) -> int:
        """Return how many numbers a stage trains; of LoRA what every matrix could get."""
        chosen = stage.settings().resolved()
        found = self.connector + (0 if chosen.train == "connector" else self.projector)
        if chosen.train == "lora":
            found += (chosen.lora_rank or 0) * sum(map(sum, self.matrices))
        found += self.language if chosen.train == "full" else 0
        return found + (self.tower if chosen.train_tower else 0)

    def weights(self, stage: Finetune, *, gpu: bool) -> float:
        """Return the bytes of all weights while a stage trains, in one process and unsplit."""
        chosen, trained = stage.settings().resolved(), self.trained(stage)
        whole = chosen.train == "full" or chosen.train_tower or chosen.precision == "fp32"
        frozen = FP32 if whole or not gpu else FROZEN.get(str(chosen.quantize), 2)
        return FP32 * trained + frozen * max(0, self.numbers - trained)

    def written(self, step: Step) -> tuple[int, int]:
        """Return the bytes that a step leaves behind, and those it needs on the way only."""
        kind = step.name.split("-")[0]
        if kind == "export":
            return self.copy + SIDE, 0
        if kind not in ("convert", "finetune"):
            return 0, 0
        small = FP32 * self.connector + SIDE
        kept = small + (self.copy if self.form != "delta" else 0)
        if step.stage is None:
            return kept, 0
        from dcsurgery.training.checkpoints import KEPT

        trained, chosen = self.trained(step.stage), step.stage.settings().resolved()
        if self.form == "delta":
            kept = FP32 * trained + SIDE
        each = SAVED + (FP32 if chosen.average else 0)
        # One more is written before the oldest goes.
        return kept, 0 if chosen.save_steps == 0 else (KEPT + 1) * each * trained


def sizes_of(recipe: Recipe, place: Place) -> Sizes:
    """Return the sizes of a recipe's base with its connector. Raises what make_plan raises."""
    checkpoint = open_model(place.base, place.revision, hints=told(place.towers))
    plan = make_plan(checkpoint, recipe.connector)
    return _sizes(checkpoint, plan)


def _sizes(checkpoint: Checkpoint, plan: SurgeryPlan) -> Sizes:
    projector = {*plan.anatomy.projector.tensors, *plan.anatomy.projector.beside}
    towers = tuple(f".{module}." for module, _ in plan.anatomy.tower.paths)
    counts: dict[str, int] = dict.fromkeys(("projector", "tower", "language"), 0)
    matrices = []
    for name, entry in checkpoint.tensors.items():
        inside = any(tower in f".{name}" for tower in towers)
        part = "projector" if name in projector else "tower" if inside else "language"
        counts[part] += prod(entry.shape)
        if part == "language" and len(entry.shape) == 2:
            matrices.append(entry.shape)
    return Sizes(
        copy=estimate_bytes(checkpoint, {}),
        to_fetch=_to_fetch(checkpoint),
        form=plan.form,
        connector=plan.new_parameters,
        projector=counts["projector"],
        tower=counts["tower"],
        language=counts["language"],
        matrices=tuple(matrices),
    )


def _to_fetch(checkpoint: Checkpoint) -> int:
    if checkpoint.is_local or checkpoint.ref.repo_id is None:
        return 0
    from huggingface_hub import try_to_load_from_cache

    def cached(name: str) -> bool:
        repo, commit = str(checkpoint.ref.repo_id), checkpoint.ref.commit
        return isinstance(try_to_load_from_cache(repo, name, revision=commit), str)

    return sum(file.size for file in checkpoint.weights if not cached(file.name))


def peak(sizes: Sizes, steps: Sequence[Step], work: Path) -> tuple[int, dict[str, int]]:
    """Return the most bytes that steps hold on the disk of a work folder, and each step's own.

    What a training that goes on has there already does not count again.
    """
    kept = most = 0
    each: dict[str, int] = {}
    for step in steps:
        leaves, on_the_way = sizes.written(step)
        there = _bytes(work / step.unfinished) if step.unfinished else 0
        each[step.name] = leaves + max(0, on_the_way - there)
        most = max(most, kept + each[step.name])
        kept += leaves
    return most, {name: size for name, size in each.items() if size}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def held_on_gpu(sizes: Sizes, stage: Finetune, way: str, count: int) -> float:
    """Return the bytes that one of `count` GPUs holds while a stage trains, activations aside."""
    from dcsurgery.training.memory import held

    average: Any = stage.settings().resolved().average
    # DeepSpeed keeps a frozen base in fp32 too.
    zero = FP32 * sizes.numbers if way.startswith("zero") else sizes.weights(stage, gpu=True)
    return held(int(zero), sizes.trained(stage), way, count, average=bool(average))
