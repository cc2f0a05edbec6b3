"""One arm trained and examined, and what is written down about it."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dcsurgery import __version__
from dcsurgery.checkpoint.checks import WRITTEN
from dcsurgery.checkpoint.written import clear, foreign, require_ours
from dcsurgery.demo.arms import Arm, find_arm
from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.outcome import Outcome, read_outcome
from dcsurgery.demo.rows import Rows, exam_rows, said, to_pixels, training_rows
from dcsurgery.surgery.plan_file import DELTA_FOLDER, SurgeryPlan, TrainingRecord
from dcsurgery.training.average import averaged
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trained_files import write_trained
from dcsurgery.training.trainer import TrainingResult, train

# Added to a seed: validation must not repeat the pictures of another seed.
VALIDATION = 1000
_DELTA = rf"(README\.md|{re.escape(WRITTEN)}|{DELTA_FOLDER}(/(plan\.json|model\.safetensors))?)"
_LEFT = re.compile(
    rf"(start|trained)(\.partial(/dcsurgery\.lock|/new)?)?|log(/training\.jsonl)?"
    rf"|(start|trained)(\.partial/new)?/{_DELTA}|result\.\w+"
)


def settings_of(exercise: Exercise, seed: int) -> TrainingSettings:
    """Return the engine's settings for an exercise."""
    return TrainingSettings(
        train="projector",
        batch_size=exercise.batch_size,
        micro_batch=exercise.batch_size,
        max_steps=exercise.steps,
        seed=seed,
        precision="fp32",
        save_steps=0,
        grad_checkpointing=False,
        **exercise.rates,
    )


class _Witness:
    """Makes batches and remembers what all of them held, in order."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.digest = hashlib.sha256()

    def __call__(self, chosen: list[int]) -> dict[str, torch.Tensor]:
        batch = self.rows.batch(chosen)
        for name in sorted(batch):
            self.digest.update(batch[name].contiguous().numpy().tobytes())
        return batch


class _Look(TrainerCallback):
    """Asks the validation questions after some steps."""

    def __init__(self, exam: Rows, steps: tuple[int, ...]) -> None:
        self.exam = exam
        self.steps = steps
        self.curve: dict[int, float] = {}

    def look(self, model: Any, step: int) -> None:
        """Note the share of right answers at a step."""
        before = model.training
        model.eval()
        with averaged(model):
            self.curve[step] = float((said(model, self.exam) == self.exam.tokens.answer).mean())
        model.train(before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look where it was asked for."""
        if state.global_step in self.steps:
            self.look(kwargs["model"], state.global_step)


def run_arm(base: Path, arm: Arm, seed: int, exercise: Exercise, folder: Path) -> Outcome:
    """Train one arm of a base and return what it learnt.

    `folder` gets start/ (the arm's delta) and trained/ (the delta after training).
    """
    started = time.perf_counter()
    look = _Look(exam_rows(seed + VALIDATION, "val", exercise.val_scenes), exercise.looks)
    test = exam_rows(exercise.test_seed, "test", exercise.test_scenes)
    model, plan = arm.build(base, folder / "start")
    same = starts_as(model, base, test)
    look.look(model, 0)
    digest = _train(model, plan, seed, exercise, look, folder) if arm.trained else None
    answers = said(model, test)
    return Outcome(
        tower=base.name,
        arm=arm.name,
        seed=seed,
        steps=max(look.curve),
        data_sha256=digest,
        starts_as_base=same,
        curve=look.curve,
        answers=answers.tolist(),
        right=(answers == test.tokens.answer).tolist(),
        kinds=[question.kind for question in test.questions],
        blocks=[str(block) for block in plan.layout.blocks],
        used=used_blocks(model, plan, test),
        seconds=round(time.perf_counter() - started, 1),
    )


def _train(
    model: Any, plan: SurgeryPlan, seed: int, exercise: Exercise, look: _Look, folder: Path
) -> str:
    """Train a model, write it to folder/trained and return the digest of what it was trained on."""
    number = exercise.steps * exercise.batch_size
    witness = _Witness(training_rows(seed, exercise.train_scenes, number))
    done = train(
        model,
        plan,
        witness.rows,
        witness,
        settings_of(exercise, seed),
        output_dir=folder / "log",
        callbacks=[look],
    )
    look.look(model, exercise.steps)
    digest = witness.digest.hexdigest()
    write_trained(
        folder / "trained",
        plan=plan,
        model=model,
        trained=done.trained.names,
        record=_record(done, number, digest),
    )
    return digest


def _record(done: TrainingResult, rows: int, digest: str) -> TrainingRecord:
    settings = done.settings
    return TrainingRecord(
        train="projector",
        trained=[],
        trained_parameters=done.trained.count,
        data="the demo's coloured digits",
        data_sha256=digest,
        rows=rows,
        skipped_rows=0,
        seed=settings.seed,
        steps=done.steps,
        epochs=done.epochs,
        batch_size=settings.batch_size or 0,
        settings=asdict(settings),
        first_loss=done.first_loss,
        last_loss=done.last_loss,
        seconds=done.seconds,
        device="cpu",
        versions={"torch": torch.__version__, "dcsurgery": __version__},
    )


@torch.no_grad()
def starts_as(model: Any, base: Path, exam: Rows, rows: int = 64) -> bool:
    """Return whether a model's logits are the base's, bit for bit."""
    from dcsurgery.loading.load import load_stock

    batch = exam.batch(range(min(rows, len(exam))))
    del batch["labels"]
    plain = load_stock(base, dtype=torch.float32)
    return torch.equal(model(**batch).logits, plain(**batch).logits)


@torch.no_grad()
def used_blocks(model: Any, plan: Any, exam: Rows, scenes: int = 100) -> list[float]:
    """Return the size of what each feature block adds to the projector's first product.

    Root mean squares over patch tokens, D_b g_b in parts of W x + b.
    """
    states = model.model.vision_tower(
        to_pixels(exam.pictures[:scenes]), output_hidden_states=True
    ).hidden_states
    states = [state[:, plan.anatomy.dropped_tokens :] for state in states]
    matrix = model.dense_connector.weight
    parts = matrix.chunk(len(plan.layout.blocks), dim=1)
    first = model.model.multi_modal_projector.linear_1
    # Not through the module: the connector's hook would wait for a pass of the tower.
    own = torch.nn.functional.linear(states[plan.anatomy.feature_layer], first.weight, first.bias)
    used = []
    for block, part in zip(plan.layout.blocks, parts, strict=True):
        mean = torch.stack([states[layer] for layer in block.layers]).mean(dim=0)
        added = torch.nn.functional.linear(mean, part)
        used.append(float(added.square().mean().sqrt() / own.square().mean().sqrt()))
    return used


def _left(name: str, path: Path | None) -> str | None:
    """Say whether an arm that was stopped wrote a file: deltas, whole or not, and the log."""
    return None if _LEFT.fullmatch(name) else ""


def run_once(
    base: Path, arm: str, seed: int, exercise: Exercise, folder: Path, layers: str | None = None
) -> Outcome:
    """Run an arm unless its result is there already; `layers` are the states of the chosen one."""
    found = read_outcome(folder)
    if found is not None:
        return found
    if folder.is_dir():  # what a run that was stopped has left
        require_ours(folder, foreign(folder, _left), "move it away, or choose another --work-dir")
        clear(folder, _left)
    outcome = run_arm(base, find_arm(arm, layers), seed, exercise, folder)
    outcome.write(folder)
    return outcome
