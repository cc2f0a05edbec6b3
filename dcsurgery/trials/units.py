"""One training of one arm and its evaluations: each is done once, kept, and gone on with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.copying import make_folder
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.data.rows import Rows, data_digest, read_rows
from dcsurgery.errors import OutputExistsError, VerificationError
from dcsurgery.evaluation.answers import REPORT, Answer, read_answers
from dcsurgery.evaluation.runner import EvalSettings, evaluate_checkpoints
from dcsurgery.recipes.resolve import installed
from dcsurgery.recipes.stamps import FOLDER as STAMPS
from dcsurgery.recipes.stamps import (
    Stamp,
    begin,
    describe_output,
    hash_inputs,
    is_done,
    read_stamp,
    write_stamp,
)
from dcsurgery.recipes.steps import Say, often
from dcsurgery.surgery.plan_file import DELTA_FOLDER, SurgeryPlan, read_plan
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.training.logs import LOG_FILE, read_log
from dcsurgery.training.settings import FREE, TrainingSettings
from dcsurgery.trials.arms import Arm
from dcsurgery.trials.memory import peak, restart_peak

try:
    import fcntl
except ImportError:  # Windows: no second process may share the work
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Asked:
    """What a trial was asked for: model and data as finetune and eval take them.

    `metrics` are those of the evaluations, the one that decides first; `settings` are resolved.
    """

    model: str
    data: str
    test: str
    settings: TrainingSettings
    metrics: tuple[str, ...]
    images: Path | None = None
    test_images: Path | None = None
    split: str = "train"
    test_split: str = "train"
    columns: Mapping[str, str] | None = None
    revision: str | None = None
    towers: Mapping[str, str] | None = None
    template: str | None = None
    limit: int | None = None
    max_new_tokens: int = 32
    eval_batch: int = 8
    dtype: str = "auto"

    @property
    def hints(self) -> dict[str, Any]:
        """Where the parts of a model in its original format are."""
        return {"towers": self.towers, "template": self.template}

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the training data and of the test."""
        return {"data": data_digest(self.data), "test": data_digest(self.test)}

    def read_test(self) -> Rows:
        """Open the test."""
        return read_rows(
            self.test,
            images=self.test_images or self.images,
            split=self.test_split,
            columns=self.columns,
        )

    def count_test(self) -> int:
        """Return how many rows of the test are asked."""
        rows = self.read_test()
        return len(rows) if self.limit is None else min(self.limit, len(rows))

    def evaluation(self, metric: str) -> EvalSettings:
        """Return how a model is evaluated: rows are read as in the training."""
        settings = self.settings
        return EvalSettings(
            metric=metric,
            batch_size=self.eval_batch,
            max_new_tokens=self.max_new_tokens,
            limit=self.limit,
            max_bad=settings.max_bad,
            seed=settings.seed,
            prompt=settings.prompt or "auto",
            aspect=settings.aspect,
            orientation=settings.orientation,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class Unit:
    """One arm with one seed; the base has none."""

    arm: Arm
    seed: int | None

    @property
    def name(self) -> str:
        """What its folder and its stamps are called."""
        return self.arm.name if self.seed is None else f"{self.arm.name}-{self.seed}"


@dataclass(frozen=True)
class Workshop:
    """Where a trial is made: its folder, what was asked, the record of the base, who is told.

    `shared` counts pictures that training and test have in common.
    """

    work: Path
    asked: Asked
    base: Mapping[str, Any]
    say: Say
    shared: int = 0

    def folder(self, unit: Unit) -> Path:
        """Return the folder of the model that a unit evaluates."""
        if unit.seed is None:
            return local_folder(self.asked.model, self.asked.revision)
        return self.work / unit.name

    def answers(self, unit: Unit, metric: str) -> Path:
        """Return the folder of an evaluation."""
        return self.work / "answers" / f"{unit.name}-{metric}"

    def done(self, unit: Unit) -> bool:
        """Return whether nothing is left to do of a unit."""
        return all(self.has(step) for step in self.steps(unit))

    def has(self, step: Step) -> bool:
        """Return whether a step is done with these inputs."""
        return self._stamp(step) is not None

    def steps(self, unit: Unit) -> list[Step]:
        """Return what a unit consists of: a training, but of the base, and the evaluations."""
        steps = [] if unit.seed is None else [self._training(unit)]
        return steps + [self._evaluation(unit, metric) for metric in self.asked.metrics]

    def carry_out(self, unit: Unit, label: str) -> None:
        """Do what is left of a unit."""
        for step in self.steps(unit):
            self.once(step, f"{label} {step.title}")

    def once(self, step: Step, label: str) -> Stamp:
        """Return a step's stamp; it is run unless that was done before with the same inputs."""
        found = self._stamp(step)
        if found is not None:
            self.say(f"{label}: done before")
            return found
        wanted = self._hash(step)
        before = read_stamp(self.work, step.name)
        if before is not None and before.inputs_sha256 != wanted:
            self.say(f"{label}: done before with other settings, data or model: done again")
        self.say(f"{label} ...")
        goes_on = begin(self.work, step.name, wanted, step.unfinished)
        restart_peak()
        started = time.perf_counter()
        result = {**step.run(goes_on), "peak_memory": peak()}
        seconds = round(time.perf_counter() - started, 2)
        outputs = describe_output(self.work, step.output)
        stamp = Stamp(step.name, wanted, result, outputs, seconds, installed())
        write_stamp(self.work, stamp)
        self.say(f"{label}: {seconds:.0f} s")
        return stamp

    def stamps(self, unit: Unit) -> list[Stamp]:
        """Return the stamps of a unit. Raises VerificationError where it is not done."""
        found = [self._stamp(step) for step in self.steps(unit)]
        if not all(found):
            raise VerificationError(
                f"{unit.name} is not done", hint="the same command goes on where it stopped"
            )
        return [stamp for stamp in found if stamp is not None]

    def _stamp(self, step: Step) -> Stamp | None:
        return is_done(self.work, step.name, self._hash(step), step.output)

    def _hash(self, step: Step) -> str:
        before = "" if step.after is None else describe_output(self.work, step.after)
        return hash_inputs(step.name, {**step.inputs, "base": dict(self.base)}, [f"{before}"])

    def _training(self, unit: Unit) -> Step:
        asked, arm, seed = self.asked, unit.arm, unit.seed
        assert arm.connector is not None and arm.plan is not None and seed is not None
        settings, output = arm.settings(asked.settings, seed), self.work / unit.name
        columns = asked.columns and dict(asked.columns)
        where: dict[str, Any] = {"split": asked.split, "columns": columns}

        def run(goes_on: bool) -> dict[str, Any]:
            tell = often(self.say)
            resume = goes_on and not output.exists()
            done = finetune_connector(
                asked.model,
                asked.data,
                output,
                connector=arm.connector,
                settings=settings,
                images=asked.images,
                revision=asked.revision,
                resume=resume,
                overwrite=not resume,
                progress=lambda step, steps, words: tell(f"step {step} of {steps}, {words}"),
                tell=self.say if seed == asked.settings.seed else None,
                **where,
                **asked.hints,
            )
            return {"advice": list(done.advice)}

        inputs = {
            "layout": asdict(arm.plan.layout),
            "settings": {k: v for k, v in asdict(settings).items() if k not in FREE},
            "data": asked.digests["data"],
            "images": asked.images and str(asked.images.resolve()),
            **where,
        }
        unfinished = f"{unit.name}.training"
        return Step(unit.name, "training", inputs, run, unit.name, unfinished)

    def _evaluation(self, unit: Unit, metric: str) -> Step:
        asked, folder = self.asked, self.answers(unit, metric)
        settings, images = asked.evaluation(metric), asked.test_images or asked.images

        def run(goes_on: bool) -> dict[str, Any]:
            tell = often(self.say)
            options: dict[str, Any] = asked.hints if unit.seed is None else {}
            evaluate = partial(
                evaluate_checkpoints,
                [self.folder(unit)],
                asked.test,
                folder,
                images=images,
                settings=settings,
                split=asked.test_split,
                columns=asked.columns,
                progress=lambda done, rows, model: tell(f"row {done} of {rows}"),
                **options,
            )
            try:
                report = evaluate(overwrite=not goes_on)
            except OutputExistsError:  # the model was written again
                report = evaluate(overwrite=True)
            return {"eval": report.model_dump(mode="json")}

        output = str((folder / REPORT).relative_to(self.work))
        inputs = {
            "settings": asdict(replace(settings, batch_size=1)),
            "test": asked.digests["test"],
            "images": images and str(images.resolve()),
            "split": asked.test_split,
            "columns": asked.columns and dict(asked.columns),
        }
        after = None if unit.seed is None else unit.name
        return Step(f"{unit.name}-{metric}", metric, inputs, run, output, None, after)

    def read_answers(self, unit: Unit, metric: str) -> dict[int, Answer]:
        """Return what a unit answered, by the places of the rows."""
        return read_answers(self.answers(unit, metric))

    def log(self, unit: Unit) -> list[dict[str, Any]]:
        """Return the steps of a unit's training."""
        return read_log(self.work / unit.name / DELTA_FOLDER / LOG_FILE)

    def plan(self, unit: Unit) -> SurgeryPlan:
        """Return the plan of a unit's trained model."""
        return read_plan(self.work / unit.name)


@dataclass(frozen=True)
class Step:
    """A training or an evaluation; `output` and `unfinished` are in the work folder, as is what it
    comes `after`. `run(goes_on)` returns JSON values.
    """

    name: str
    title: str
    inputs: dict[str, Any]
    run: Callable[[bool], dict[str, Any]]
    output: str
    unfinished: str | None = None
    after: str | None = None


@contextmanager
def held(work: Path, name: str, *, wait: bool) -> Iterator[bool]:
    """Hold a unit while the block runs, so that several processes share the work of one folder.

    Gives False where another process holds it. The system lets go of it when a process ends.
    """
    make_folder(work / STAMPS)
    lock = os.open(work / STAMPS / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)
