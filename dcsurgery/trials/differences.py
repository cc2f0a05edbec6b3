"""Where answers differ: all counted, and one of each kind drawn by a seed, never picked."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from dcsurgery.evaluation.questions import question_turns
from dcsurgery.evaluation.trial_report import Differences, Example
from dcsurgery.trials.compare import Answers, Results

Kind = Literal["won", "lost"]


def count_differences(results: Results, judged: str, seeds: Sequence[int]) -> list[Differences]:
    """Return how many rows the judged arm won and lost against the control, seed by seed.

    Examples are of the first seed. A loss differs everywhere: nothing is returned for it.
    """
    if results.metric == "loss":
        return []
    found: list[Differences] = []
    pairs = zip(*(results.answers[arm][results.metric] for arm in (judged, "control")), strict=True)
    for seed, (ours, theirs) in zip(seeds, pairs, strict=True):
        changed = {
            "won": [at for at in results.places if ours[at].score > theirs[at].score],
            "lost": [at for at in results.places if ours[at].score < theirs[at].score],
        }
        draw = Random(seed)
        examples = [
            _example(results, kind, draw.choice(changed[kind]), ours, theirs)
            for kind in ("won", "lost")
            if changed[kind] and not found
        ]
        found.append(
            Differences(
                seed=seed,
                won=len(changed["won"]),
                lost=len(changed["lost"]),
                rows=len(results.places),
                examples=examples,
            )
        )
    return found


def _example(results: Results, kind: Kind, at: int, ours: Answers, theirs: Answers) -> Example:
    row = results.rows[at]
    return Example(
        kind=kind,
        place=at,
        id=row.id,
        question=question_turns(row)[-1].text.strip(),
        pictures=[image.name for image in row.images],
        answers=list(row.answers),
        control=theirs[at].answer or "",
        retrofit=ours[at].answer or "",
    )
