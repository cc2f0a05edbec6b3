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


class YesNo(_Record):
    """What POPE's evaluate.py prints; None where nothing was said, or asked, to divide by."""

    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    yes_share: float


class Matching(_Record):
    """How a file of answers fits the data: how many rows or lines do not, and the first of them.

    `missing` rows have no answer, `unknown` lines no row. Of `repeated` ids several answers are
    given; those that contradict each other count as missing.
    """

    missing: int = 0
    missing_ids: list[str] = []
    repeated: int = 0
    repeated_ids: list[str] = []
    unknown: int = 0
    unknown_ids: list[str] = []


class ModelResult(_Record):
    """The scores of one model. `by_type` splits the rows by question type where data names one.

    `unclear` answers name no option or several, or say neither yes nor no. `yes_no` is there for
    exact on yes/no data, `matching` for answers that were read from a file.
    """

    model: str
    score: Score
    by_type: dict[str, Score] = {}
    against_first: Comparison | None = None
    against_first_by_type: dict[str, Comparison] = {}
    unclear: int = 0
    yes_no: YesNo | None = None
    yes_no_by_type: dict[str, YesNo] = {}
    matching: Matching | None = None


class EvalReport(_Record):
    """One evaluation of several models on the same rows.

    `rows` were answered by every model; `skipped` names the first of the others with a reason.
    Of the usable rows, `layouts` counts how they are written, and `unread_pictures` keys that look
    like pictures and were not read. `warnings` say why the result may not be what is meant;
    `reading` how references are read where the data decides: `options`, `yes_no`.
    `dropped` counts by model the rows of which its prompt leaves something out: {"system turn": 3}.
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
    dropped: dict[str, dict[str, int]] = {}
    metric: Metric
    reading: dict[str, str] = {}
    test: str
    models: list[ModelResult]
    settings: dict[str, str | int | float | bool | None]
    seconds: float
    versions: dict[str, str]
