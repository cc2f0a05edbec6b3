"""What a repository gets besides the model's own files: plan, reports, picture, card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dcsurgery.errors import RequestError
from dcsurgery.evaluation.eval_report import EvalReport
from dcsurgery.publishing.base import PublicBase
from dcsurgery.publishing.card import CardFacts, write_card
from dcsurgery.publishing.changes import Content
from dcsurgery.publishing.failures import hub_calls
from dcsurgery.publishing.picture import PICTURE_FILE, draw_wiring
from dcsurgery.publishing.privacy import without_paths
from dcsurgery.publishing.target import Target, read_text
from dcsurgery.publishing.tried import TRIAL_FILE
from dcsurgery.surgery.delta_readme import CARD
from dcsurgery.surgery.plan_file import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    DELTA_FOLDER,
    PLAN_FILE,
    SurgeryPlan,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

VERIFY_FILE = f"{DELTA_FOLDER}/verify.json"
EVAL_PREFIX = f"{DELTA_FOLDER}/eval-"
# How `dcsurgery convert` begins the README of a delta: a stand-in, not somebody's text.
STUB = "# Dense Connector delta for "


def read_evaluations(paths: Sequence[str | Path]) -> list[EvalReport]:
    """Return the reports that `dcsurgery eval` wrote, local paths cut.

    Raises RequestError for a file that is not one.
    """
    found = []
    for path in paths:
        try:
            report = EvalReport.model_validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not an evaluation report"
            raise RequestError(
                f"{path} cannot be published: {why}",
                hint="name the report.json that `dcsurgery eval -o DIR` wrote",
            ) from None
        found.append(EvalReport.model_validate(without_paths(report.model_dump(mode="json"))))
    return found


def public_plan(plan: SurgeryPlan, base: PublicBase) -> SurgeryPlan:
    """Return the plan as others read it: the base by its Hub id, no folder of this machine."""
    where = {
        "id": base.repo_id or Path(plan.base.id).name,
        "folder": None,
        "commit": base.commit or plan.base.commit,
        # Readers look where an original's config says; a folder of this machine helps nobody.
        "towers": {n: t for n, t in plan.base.towers.items() if not Path(t.place).is_absolute()},
    }
    plan = plan.model_copy(update={"base": plan.base.model_copy(update=where)})
    return SurgeryPlan.model_validate(without_paths(plan.model_dump(mode="json")))


def public_report(report: dict[str, Any], facts: CardFacts) -> dict[str, Any]:
    """Return a verification as others read it."""
    names = {"output": facts.repo_id, "base": facts.plan.base.id}
    cleaned: dict[str, Any] = without_paths(report | names)
    return cleaned | names


def standing_reports(api: HfApi, target: Target, plan: SurgeryPlan) -> dict[str, str]:
    """Return the reports in the repository by path, where they are about these very weights."""
    if PLAN_FILE not in target.files or target.head is None:
        return {}
    with hub_calls(target.repo_id):
        try:
            old = SurgeryPlan.model_validate_json(
                read_text(api, target.repo_id, target.head, PLAN_FILE)
            )
        except ValidationError:
            return {}
        if any(getattr(old, key) != getattr(plan, key) for key in _WEIGHTS):
            return {}
        return {
            path: read_text(api, target.repo_id, target.head, path)
            for path in target.files
            if path in (VERIFY_FILE, TRIAL_FILE) or path.startswith(EVAL_PREFIX)
        }


_WEIGHTS = ("form", "delta", "changed", "training")


def all_evaluations(
    new: Sequence[EvalReport], standing: dict[str, str]
) -> tuple[tuple[str, EvalReport], ...]:
    """Return the evaluations to publish with their paths: standing ones, unless measured anew."""
    old = []
    for path, text in standing.items():
        if path.startswith(EVAL_PREFIX):
            old.append(EvalReport.model_validate_json(text))
    done = {(report.data_sha256, report.metric) for report in new}
    kept = [report for report in old if (report.data_sha256, report.metric) not in done]
    counts: dict[str, int] = {}
    named = []
    for report in [*kept, *new]:
        number = counts[report.metric] = counts.get(report.metric, 0) + 1
        named.append((f"{EVAL_PREFIX}{report.metric}-{number}.json", report))
    return tuple(named)


def old_card(api: HfApi, target: Target, folder: Path, plan: SurgeryPlan) -> str | None:
    """Return the card to update: the repository's, or what somebody wrote into a delta's README."""
    if CARD in target.files and target.head is not None:
        with hub_calls(target.repo_id):
            return read_text(api, target.repo_id, target.head, CARD)
    local = folder / CARD
    if plan.form == "delta" and local.is_file():
        text = local.read_text(encoding="utf-8", errors="replace")
        return None if text.startswith(STUB) else text
    return None  # the README of a stock checkpoint is the base's, and speaks of the base


def make_documents(
    files: dict[str, Content], facts: CardFacts, card: str | None
) -> dict[str, Content]:
    """Return `files` as they are published, with plan, reports, picture and card.

    Raises PublishError when the card to update cannot be read.
    """
    documents = {path: _public_json(path, content, facts) for path, content in files.items()}
    documents.pop(VERIFY_FILE, None)
    plan = _with_adapter(facts.plan, documents)
    documents[PLAN_FILE] = Content(plan.model_dump_json(indent=2).encode() + b"\n")
    documents[PICTURE_FILE] = Content(draw_wiring(facts.plan))
    if facts.report is not None:
        documents[VERIFY_FILE] = _as_json(facts.report)
    if facts.tried is not None:
        documents[TRIAL_FILE] = _as_json(facts.tried.report.model_dump(mode="json"))
    for path, report in facts.evaluations:
        documents[path] = _as_json(report.model_dump(mode="json"))
    documents[CARD] = Content(write_card(facts, card).encode())
    return documents


def _public_json(path: str, content: Content, facts: CardFacts) -> Content:
    """Return a JSON file beside the plan without this machine's folders; others as they are."""
    if not path.startswith(f"{DELTA_FOLDER}/") or not path.endswith((".json", ".jsonl")):
        return content
    assert isinstance(content.source, Path)
    text = content.source.read_text(encoding="utf-8", errors="replace")
    if path.endswith(".jsonl"):  # names of rows and pictures
        lines = text.splitlines()
        clean = [_public_line(line) for line in lines]
        return content if clean == lines else Content("".join(f"{c}\n" for c in clean).encode())
    try:
        values = json.loads(text)
    except ValueError:
        return content
    cleaned = without_paths(values)
    if isinstance(cleaned, dict) and "base_model_name_or_path" in cleaned:  # peft's adapter_config
        cleaned["base_model_name_or_path"] = facts.base.repo_id or facts.plan.base.id
    return content if cleaned == values else _as_json(cleaned)


def _public_line(line: str) -> str:
    try:
        values = json.loads(line)
    except ValueError:
        values = line
    cleaned = without_paths(values)
    return line if cleaned == values else json.dumps(cleaned, ensure_ascii=False)


def _with_adapter(plan: SurgeryPlan, documents: dict[str, Content]) -> SurgeryPlan:
    """Return the plan with the digest of the adapter's config where it was rewritten."""
    config = documents.get(f"{ADAPTER_FOLDER}/{ADAPTER_CONFIG}")
    if plan.adapter is None or config is None or isinstance(config.source, Path):
        return plan
    files = {**plan.adapter.files, ADAPTER_CONFIG: config.sha256}
    return plan.model_copy(update={"adapter": plan.adapter.model_copy(update={"files": files})})


def _as_json(values: Any) -> Content:
    return Content(json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")


def with_report(facts: CardFacts, report: dict[str, Any] | None) -> CardFacts:
    """Return the facts with a verification, made fit to be read by others."""
    return replace(facts, report=None if report is None else public_report(report, facts))
