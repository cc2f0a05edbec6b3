"""From answers to a report: means, intervals and tests, over all rows and by question type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dcsurgery import __version__
from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRows, Row
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.answers import Answer
from dcsurgery.evaluation.eval_report import Comparison, EvalReport, ModelResult, Score
from dcsurgery.evaluation.intervals import TEST, compare_rows, score_rows

NAMED = 100


@dataclass(frozen=True)
class Scored:
    """Rows with their places in the data, those that could not be used, answers per model."""

    rows: Sequence[tuple[int, Row]]
    bad: BadRows
    answers: Sequence[Mapping[int, Answer]]

    @property
    def common(self) -> list[tuple[int, Row]]:
        """The rows that every model answered."""
        return [(at, row) for at, row in self.rows if all(at in found for found in self.answers)]


def summarise(
    scored: Scored, models: Sequence[str], data: str, digest: str, described: Mapping[str, Any]
) -> EvalReport:
    """Return the report; `described` has the settings and the seconds.

    Raises RequestError when no row was answered by every model.
    """
    rows = scored.common
    if not rows:
        raise RequestError("no row was answered by every model", hint="see --max-bad")
    settings = described["settings"]
    census = Census.of(row for _, row in rows)
    parts = _parts(rows)
    results = [
        _result(name, found, scored.answers[0] if index else None, parts, settings["seed"])
        for index, (name, found) in enumerate(zip(models, scored.answers, strict=True))
    ]
    return EvalReport(
        data=data,
        data_sha256=digest,
        rows=len(rows),
        skipped_rows=len(scored.bad),
        skipped={bad.id: bad.reason for bad in list(scored.bad)[:NAMED]},
        **census.facts(),
        warnings=census.warnings(),
        metric=settings["metric"],
        test=TEST,
        models=results,
        settings=settings,
        seconds=round(described["seconds"], 3),
        versions=versions(),
    )


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


def _result(
    name: str,
    found: Mapping[int, Answer],
    first: Mapping[int, Answer] | None,
    parts: Mapping[str | None, Part],
    seed: int,
) -> ModelResult:
    scores: dict[str | None, Score] = {}
    against: dict[str | None, Comparison] = {}
    for kind, (places, clusters) in parts.items():
        values = [found[at].score for at in places]
        weights = [found[at].tokens for at in places]
        scores[kind] = score_rows(values, clusters, weights, seed=seed)
        if first is not None:
            base = [first[at].score for at in places]
            against[kind] = compare_rows(values, base, clusters, weights, seed=seed)
    return ModelResult(
        model=name,
        score=scores.pop(None),
        by_type={str(kind): value for kind, value in scores.items()},
        against_first=against.pop(None, None),
        against_first_by_type={str(kind): value for kind, value in against.items()},
    )


def versions() -> dict[str, str]:
    """Return the versions that answers depend on."""
    import torch
    import transformers

    return {
        "dcsurgery": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
