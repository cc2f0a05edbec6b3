"""A card's YAML block: read leniently, merged, its licence settled, written in its old order."""

from __future__ import annotations

import re
from typing import Any

from dcsurgery.errors import PublishError
from dcsurgery.evaluation.eval_report import EvalReport
from dcsurgery.publishing.failures import NOTHING

# The block as the Hub finds it: at the very beginning, between lines of three dashes.
_BLOCK = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
SOURCE = "dcsurgery"
TASK = "image-text-to-text"
# Our metrics by the Hub's names for them.
METRICS = {"exact": "exact_match", "vqa": "accuracy", "choice": "accuracy", "loss": "loss"}

# Licences that allow derived works under other terms.
PERMISSIVE = {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense"}
KEYS = ("license", "license_name", "license_link")


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Return a card's metadata and its Markdown. Raises PublishError for unreadable YAML."""
    import yaml

    found = _BLOCK.match(text)
    if found is None:
        return {}, text
    try:
        data = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise _unreadable(str(error)) from None
    if not isinstance(data, dict):
        raise _unreadable("it is not a mapping")
    return data, text[found.end() :]


def lenient_metadata(text: str) -> dict[str, Any]:
    """Return somebody else's metadata, nothing where it cannot be read."""
    try:
        return split_card(text)[0]
    except PublishError:
        return {}


def _unreadable(why: str) -> PublishError:
    return PublishError(
        f"the metadata of the card on the Hub cannot be read ({why.splitlines()[0]}); {NOTHING}",
        hint="repair its README.md on the Hub, or write it anew with --overwrite-card",
    )


def merge_metadata(
    card: dict[str, Any], base: dict[str, Any], ours: dict[str, Any]
) -> dict[str, Any]:
    """Return a card's metadata with ours: lists are united, what the card says otherwise stays.

    Language and task come from the base's card where this one has none. The keys that only the push
    can know (base_model, relation, library, licence) are ours.
    """
    merged = dict(card)
    for key in ("language", "pipeline_tag"):
        if key not in merged and base.get(key):
            merged[key] = base[key]
    merged.setdefault("pipeline_tag", TASK)
    for key, value in ours.items():
        if key == "tags":
            old = merged.get("tags") or []
            old = [old] if isinstance(old, str) else old
            value = [*old, *(tag for tag in value if tag not in old)]
        merged[key] = value
    return merged


def render_card(metadata: dict[str, Any], body: str) -> str:
    """Return the card's text. Raises PublishError when the Hub client could not read it."""
    import yaml
    from huggingface_hub import ModelCard

    block = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000).strip()
    text = f"---\n{block}\n---\n\n{body.strip()}\n"
    try:
        ModelCard(text)
    except (TypeError, ValueError) as error:
        raise _unreadable(str(error) or type(error).__name__) from None
    return text


def model_index(
    name: str, old: Any, evaluations: list[tuple[EvalReport, str]]
) -> list[dict[str, Any]]:
    """Return a card's `model-index`: foreign results stay, ours are those of the reports.

    `evaluations` pairs a report with the address of its file. The value is the last model's mean.
    Raises PublishError for an index that cannot be read.
    """
    kept: list[dict[str, Any]] = []
    if old:
        try:
            name = old[0].get("name", name)
            kept = [item for item in old[0]["results"] if not _is_ours(item)]
        except (AttributeError, LookupError, TypeError):
            raise _unreadable("its model-index has no results") from None
    ours = [_result(report, url) for report, url in evaluations]
    return [{"name": name, "results": [*kept, *ours]}] if kept or ours else []


def _is_ours(result: Any) -> bool:
    source = result.get("source") if isinstance(result, dict) else None
    return isinstance(source, dict) and source.get("name") == SOURCE


def _result(report: EvalReport, url: str) -> dict[str, Any]:
    metric = {
        "type": METRICS[report.metric],
        "name": report.metric,
        "value": report.models[-1].score.mean,
    }
    return {
        "task": {"type": TASK},
        "dataset": {"type": report.data, "name": report.data},
        "metrics": [metric],
        "source": {"name": SOURCE, "url": url},
    }


def settle_licence(
    base: dict[str, Any], card: dict[str, Any], stated: str | None
) -> dict[str, Any]:
    """Return the licence keys of the card, from the base's metadata, the card's and the option.

    Raises PublishError when the base's licence does not allow what is stated.
    """
    inherited = {key: base[key] for key in KEYS if base.get(key)}
    wanted = {key: card[key] for key in KEYS if card.get(key)}
    if stated is not None:
        wanted = {"license": stated}
    if not wanted or not inherited:
        return wanted or inherited
    first, second = inherited.get("license"), wanted.get("license")
    renamed = "license_name" in wanted and wanted["license_name"] != inherited.get("license_name")
    if first == second and not renamed:
        return inherited | wanted
    if first not in PERMISSIVE:
        where = "--license says" if stated is not None else "the card says"
        raise PublishError(
            f"the base is licensed {first}, {where} {second}; {NOTHING}",
            hint=f"keep {first}: correct the card's metadata, or leave --license out",
        )
    return wanted
