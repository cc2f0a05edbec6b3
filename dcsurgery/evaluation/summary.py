"""From answers to a report: means, intervals and tests, over all rows and by question type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsurgery.data.census import Census
from dcsurgery.data.conversations import Row
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.answers import CHART, REPORT, Answer
from dcsurgery.evaluation.chart import draw_report
from dcsurgery.evaluation.eval_report import Comparison, EvalReport, Matching, ModelResult, Score
from dcsurgery.evaluation.intervals import TEST, compare_rows, score_rows
from dcsurgery.evaluation.metrics import yes_no_counts
from dcsurgery.evaluation.questions import Questions

NAMED = 100


@dataclass(frozen=True)
class Scored:
    """Questions, and per model its name, its answers by place and how they fitted the data."""

    questions: Questions
    models: Sequence[str]
    answers: Sequence[Mapping[int, Answer]]
    matching: Sequence[Matching | None]


def write_summary(scored: Scored, folder: Path, **described: Any) -> EvalReport:
    """Write report.json and report.png and return the report.

    `described` are its fields that the answers do not tell; the settings name metric and seed.
    Raises RequestError when no row was answered by every model.
    """
    questions, settings = scored.questions, described["settings"]
    rows = [(at, row) for at, row in questions.rows if all(at in found for found in scored.answers)]
    if not rows:
        raise RequestError(
            "no row was answered by every model", hint="see --max-bad, and the ids of --answers"
        )
    census = Census.of(row for _, row in rows)
    results = [
        _result(scored, index, rows, settings["seed"]) for index in range(len(scored.models))
    ]
    report = EvalReport(
        rows=len(rows),
        skipped_rows=len(questions.bad),
        skipped={bad.id: bad.reason for bad in list(questions.bad)[:NAMED]},
        **census.facts(),
        warnings=census.warnings(),
        metric=settings["metric"],
        reading=questions.reading,
        test=TEST,
        models=results,
        **described,
    )
    (folder / REPORT).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    draw_report(report, folder / CHART)
    return report


Part = tuple[list[int], list[str]]


def _parts(rows: Sequence[tuple[int, Row]]) -> dict[str | None, Part]:
    """Return places and clusters of all rows (None) and of every question type, by name."""
    found: dict[str | None, Part] = {None: ([], [])}
    kinds = sorted({row.kind for _, row in rows if row.kind is not None})
    found |= {kind: ([], []) for kind in kinds}
    for at, row in rows:
        for kind in dict.fromkeys((None, row.kind)):
            found[kind][0].append(at)
            found[kind][1].append(cluster(at, row))
    return found


def cluster(at: int, row: Row) -> str:
    """Return what rows with the same picture share; a row without one stands for itself."""
    return row.images[0].key if row.images else f"row {at}"


def _result(scored: Scored, index: int, rows: Sequence[tuple[int, Row]], seed: int) -> ModelResult:
    found, first = scored.answers[index], scored.answers[0]
    scores: dict[str | None, Score] = {}
    against: dict[str | None, Comparison] = {}
    parts = _parts(rows)
    for kind, (places, clusters) in parts.items():
        values = [found[at].score for at in places]
        weights = [found[at].tokens for at in places]
        scores[kind] = score_rows(values, clusters, weights, seed=seed)
        if index:
            base = [first[at].score for at in places]
            against[kind] = compare_rows(values, base, clusters, weights, seed=seed)
    by_place = dict(rows)
    counts = {
        kind: yes_no_counts((found[at].read, by_place[at]) for at in places)
        for kind, (places, _) in parts.items()
        if scored.questions.yes_no
    }
    return ModelResult(
        model=scored.models[index],
        score=scores.pop(None),
        by_type={str(kind): value for kind, value in scores.items()},
        against_first=against.pop(None, None),
        against_first_by_type={str(kind): value for kind, value in against.items()},
        unclear=sum(not found[at].clear for at, _ in rows),
        yes_no=counts.pop(None, None),
        yes_no_by_type={str(kind): value for kind, value in counts.items()},
        matching=scored.matching[index],
    )
