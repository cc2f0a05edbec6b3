"""A trial's report without a trial: of the arms control and dci, with a gain that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dcsurgery.evaluation.eval_report import Score
from dcsurgery.evaluation.trial_report import (
    Differences,
    Example,
    Gain,
    TrialArm,
    TrialReport,
    TrialRun,
    Versus,
)
from dcsurgery.surgery.plan_file import SurgeryPlan

SHA = "ab" * 32


def gain(mean: float, low: float, high: float, seeds: Sequence[float] = ()) -> Gain:
    own = list(seeds) or [mean - 0.001, mean + 0.001]
    return Gain(mean=mean, low=low, high=high, p_value=0.0123, rows=500, seeds=own)


def arm(name: str, plan: SurgeryPlan, blocks: list[list[int]]) -> TrialArm:
    score = Score(mean=0.4321, low=0.4, high=0.46, rows=500)
    loss = Score(mean=1.2345, low=1.1, high=1.3, rows=500)
    runs = [
        TrialRun(seed=seed, folder=f"/home/me/work/{name}-{seed}", steps=9, first_loss=2.5,
                 last_loss=1.5, seconds=12.5, eval_seconds=3.5, peak_memory=10**9,
                 weights={"dense_connector.weight": SHA}, score=0.4321, loss=1.2345)
        for seed in (0, 1)
    ]  # fmt: skip
    return TrialArm(
        name=name, title="a title", connector=plan.kind, blocks=blocks, new_parameters=100,
        trained_parameters=200, runs=runs, score=score, by_type={"colour": score}, loss=loss,
        loss_by_type={"colour": loss},
    )  # fmt: skip


def trial_of(
    plan: SurgeryPlan, found: Gain | None = None, *, lost: Sequence[str] = (), **fields: Any
) -> TrialReport:
    """Return a trial of a plan's connector as its arm dci."""
    found = found or gain(0.05, 0.03, 0.07)
    flat = gain(0.01, -0.01, 0.03)
    versus = Versus(
        arm="dci", against="control", gain=found, by_type={"colour": found}, loss=flat,
        loss_by_type={"colour": flat}, lost=list(lost),
        beats=found.low > 0 and min(found.seeds) > 0 and not lost,
    )  # fmt: skip
    example = Example(
        kind="won", place=3, id="row 4", question="my secret?", pictures=["me.png"], answers=["x"],
        control="y", retrofit="x",
    )  # fmt: skip
    blocks = [list(block.layers) for block in plan.layout.blocks]
    values: dict[str, Any] = {
        "verdict": "worth it: made up", "decision": "worth it", "judged": "dci", "metric": "exact",
        "model": "/home/me/llava", "base": plan.base, "architecture": plan.architecture,
        "data": "/home/me/train.json", "data_sha256": SHA, "test": "/home/me/test.json",
        "test_sha256": SHA, "rows": 500, "pictures": 250, "skipped_rows": 0, "shared_pictures": 0,
        "statistics": "a test", "seeds": [0, 1],
        "arms": [arm("control", plan, [[3]]), arm("dci", plan, blocks)], "comparisons": [versus],
        "differences": [Differences(seed=0, won=9, lost=4, rows=500, examples=[example])],
        "seconds": 99.5, "settings": {"lr": 2e-5}, "versions": {},
    }  # fmt: skip
    return TrialReport(**{**values, **fields})
