"""The card a push would write, made without the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dcsurgery.publishing.base import PublicBase
from dcsurgery.publishing.card import CardFacts, write_card
from dcsurgery.publishing.documents import EVAL_PREFIX, public_plan, read_evaluations, with_report
from dcsurgery.publishing.target import MAIN
from dcsurgery.surgery.plan_file import read_plan


def draft_card(
    model: Path, repo_id: str, *, report: Path | None = None, evals: Sequence[Path] = ()
) -> str:
    """Return the card of a converted folder, as `push` would write it to `repo_id`.

    `report` is the JSON of a verification. The Hub is not asked, so the card names no base there.
    Raises CheckpointError for a folder that has no plan, RequestError for `evals` that are not
    reports.
    """
    base = PublicBase()
    evaluations = tuple(
        (f"{EVAL_PREFIX}{found.metric}-{number}.json", found)
        for number, found in enumerate(read_evaluations(evals), start=1)
    )
    plan = public_plan(read_plan(model), base)
    facts = CardFacts(repo_id, MAIN, plan, base, evaluations=evaluations)
    verified = None if report is None else json.loads(report.read_text())
    return write_card(with_report(facts, verified), None)
