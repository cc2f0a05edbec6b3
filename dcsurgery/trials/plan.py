"""What a trial would do, and about how long it would take: measured on a few rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcsurgery.evaluation.runner import evaluate_checkpoints
from dcsurgery.printing import units
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.trials.arms import TITLES, Arm
from dcsurgery.trials.units import Asked, Unit, Workshop

BATCHES = 3


@dataclass(frozen=True)
class TrialPlan(Printed):
    """What a trial would do. Seconds are estimates for this machine, of what is left to do.

    `arms` has the states that each arm's connector reads; `left_out` why others cannot be built;
    `unknown` arms wait for the probe. `no_verdict` says that none can come of these arms, if so.
    """

    model: str
    work_dir: str
    arms: dict[str, str]
    unknown: tuple[str, ...]
    left_out: dict[str, str]
    seeds: tuple[int, ...]
    trainings: int
    left: int
    left_tests: int
    steps: int
    seconds_per_step: float
    memory: int
    test_rows: int
    seconds_per_row: float
    shared_pictures: int = 0
    no_verdict: str = ""

    @property
    def seconds(self) -> float:
        """All trainings and evaluations that are left; the probe is not in it."""
        training = self.left * self.steps * self.seconds_per_step
        return training + self.left_tests * self.test_rows * self.seconds_per_row

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        values = {**vars(self), "unknown": list(self.unknown), "seeds": list(self.seeds)}
        return {"schema_version": 1, "dry_run": True, **values, "seconds": self.seconds}

    def show(self, out: Sheet) -> None:
        """Put the plan on a sheet."""
        out.show(f"plan: try {self.model} in {self.work_dir}", "bold")
        rows = [(name, TITLES[name], states) for name, states in self.arms.items()]
        rows += [(name, TITLES[name], "the probe's") for name in self.unknown]
        out.table(("arm", "", "states"), rows, "www")
        facts = [(f"without {name}", why) for name, why in self.left_out.items()]
        facts += [
            ("seeds", ", ".join(map(str, self.seeds))),
            ("trainings", f"{self.left} of {self.trainings} are left, "
             f"{units.plural(self.steps, 'step')} each, {units.seconds(self.seconds_per_step)} "
             "a step"),
            ("test", f"{self.test_rows:,} rows, {units.seconds(self.seconds_per_row)} a row"),
            ("memory", f"{units.size(self.memory)} for a training"),
            ("time", f"about {units.seconds(self.seconds)} on this machine, estimated from a "
             "micro-batch and a few rows" + "; the probe comes on top" * bool(self.unknown)),
        ]  # fmt: skip
        if self.shared_pictures:
            facts.append(("warning", f"{self.shared_pictures} pictures of the test are in the "
                          "training data too"))  # fmt: skip
        if self.no_verdict:
            facts.append(("warning", self.no_verdict))
        out.facts(facts)


def make_trial_plan(
    shop: Workshop,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    todo: Sequence[Unit],
    left_out: Mapping[str, str],
    unknown: Sequence[str],
) -> TrialPlan:
    """Return what a trial would do; one micro-batch and a few rows are tried, nothing is kept."""
    asked = shop.asked
    trained = [arm for arm in arms if arm.plan is not None]
    steps, per_step, memory = 0, 0.0, 0
    if trained:
        arm = trained[-1]
        planned = finetune_connector(
            asked.model,
            asked.data,
            dry_run=True,
            connector=arm.connector,
            settings=arm.settings(asked.settings, asked.settings.seed),
            images=asked.images,
            split=asked.split,
            columns=asked.columns,
            revision=asked.revision,
            **asked.hints,
        )
        steps, per_step = planned.steps, planned.estimate.seconds_per_step
        memory = planned.estimate.memory
    rows, per_row = _time_rows(asked, shop)
    extra = len(unknown) * len(seeds)
    return TrialPlan(
        model=asked.model,
        work_dir=str(shop.work),
        arms={arm.name: _states(arm) for arm in arms},
        unknown=tuple(unknown),
        left_out=dict(left_out),
        seeds=tuple(seeds),
        trainings=len(trained) * len(seeds) + extra,
        left=len([unit for unit in todo if unit.seed is not None]) + extra,
        left_tests=len(todo) + extra,
        steps=steps,
        seconds_per_step=per_step,
        memory=memory,
        test_rows=rows,
        seconds_per_row=per_row,
        shared_pictures=shop.shared,
    )


def _states(arm: Arm) -> str:
    if arm.plan is None or arm.name == "control":
        return ""
    return ";".join(map(str, arm.plan.layout.blocks))


def _time_rows(asked: Asked, shop: Workshop) -> tuple[int, float]:
    """Return how many rows the test has, and seconds of one with all metrics."""
    seconds = 0.0
    for metric in asked.metrics:
        settings = asked.evaluation(metric)
        few = min(BATCHES * asked.eval_batch, asked.limit or BATCHES * asked.eval_batch)
        told: list[tuple[float, int]] = [(time.perf_counter(), 0)]
        with tempfile.TemporaryDirectory(prefix="dcsurgery-") as place:
            evaluate_checkpoints(
                [shop.folder(Unit(Arm("base"), None))],
                asked.test,
                Path(place) / "answers",
                images=asked.test_images or asked.images,
                settings=replace(settings, limit=few),
                split=asked.test_split,
                columns=asked.columns,
                progress=lambda done, rows, model, told=told: told.append(  # type: ignore[misc]
                    (time.perf_counter(), done)
                ),
                **asked.hints,
            )
        # The first batch has loaded the model; where it is the only one there is no other measure.
        begin, end = told[1 if len(told) > 2 else 0], told[-1]
        seconds += (end[0] - begin[0]) / max(1, end[1] - begin[1])
    return asked.count_test(), seconds
