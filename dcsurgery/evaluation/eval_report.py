"""What an evaluation found, as it is written to report.json."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Metric = Literal["exact", "vqa", "loss", "choice"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Score(_Record):
    """A mean over rows with its 95 % bootstrap interval. exact, vqa and choice lie in 0..1.

    A loss is the mean over all answer tokens of these rows: long answers count more.
    """

    mean: float
    low: float
    high: float
    rows: int


class Comparison(_Record):
    """A model minus the first one on the same rows: mean difference, 95 % interval, p-value."""

    difference: float
    low: float
    high: float
    p_value: float


class ModelResult(_Record):
    """The scores of one model. `by_type` splits the rows by question type where data names one."""

    model: str
    score: Score
    by_type: dict[str, Score] = {}
    against_first: Comparison | None = None
    against_first_by_type: dict[str, Comparison] = {}


class EvalReport(_Record):
    """One evaluation of several models on the same rows.

    `rows` were answered by every model; `skipped` names the first of the others with a reason.
    Of the usable rows, `layouts` counts how they are written, and `unread_pictures` keys that look
    like pictures and were not read. `warnings` say why the result may not be what is meant.
    """

    schema_version: Literal[1] = 1
    data: str
    data_sha256: str
    rows: int
    skipped_rows: int
    skipped: dict[str, str] = {}
    rows_with_pictures: int = 0
    rows_without_pictures: int = 0
    layouts: dict[str, int] = {}
    unread_pictures: dict[str, int] = {}
    warnings: list[str] = []
    metric: Metric
    test: str
    models: list[ModelResult]
    settings: dict[str, str | int | float | bool | None]
    seconds: float
    versions: dict[str, str]
