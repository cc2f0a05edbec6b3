"""An evaluation report and a record of a training, of made-up numbers."""

from __future__ import annotations

from typing import Any

from dcsurgery.evaluation.eval_report import Comparison, EvalReport, ModelResult, Score
from dcsurgery.surgery.plan_file import TrainingRecord

SHA = "ab" * 32


def evaluation(metric: Any = "exact", mean: float = 0.62345678, data: str = SHA) -> EvalReport:
    score = Score(mean=mean, low=0.5987, high=0.6512, rows=500)
    gain = Comparison(difference=0.0345678, low=0.011, high=0.0567, p_value=0.00321)
    by_type = {"count": Score(mean=0.4321, low=0.35, high=0.51, rows=77)}
    return EvalReport(
        data="me/test", data_sha256=data, rows=500, skipped_rows=3, metric=metric,
        test="McNemar", settings={}, seconds=1.5, versions={},
        models=[
            ModelResult(model="base", score=Score(mean=0.5888, low=0.56, high=0.6, rows=500)),
            ModelResult(
                model="upgraded", score=score, by_type=by_type, against_first=gain,
                against_first_by_type={"count": gain},
            ),
        ],
    )  # fmt: skip


TRAINED = TrainingRecord(
    train="lora", trained=["dense_connector.weight"], trained_parameters=1_234_567, data="me/rows",
    data_sha256=SHA, rows=4321, skipped_rows=7, seed=11, steps=99, epochs=1.25, batch_size=16,
    settings={"lr": 2e-5, "warmup": 0.03, "stage": None}, first_loss=2.718281828,
    last_loss=1.41421356, seconds=612.345, device="cuda", versions={"torch": "2.13.0"},
    adapter={"r": 8},
)  # fmt: skip
