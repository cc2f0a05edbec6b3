"""The model card: what was done, verified, trained, measured. Only numbers a report holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dcsurgery.data.tally import Losses
from dcsurgery.evaluation.eval_report import Comparison, EvalReport, Score
from dcsurgery.markdown import table
from dcsurgery.publishing.base import PublicBase
from dcsurgery.publishing.formula import name_connector, write_formula
from dcsurgery.publishing.metadata import (
    lenient_metadata,
    merge_metadata,
    model_index,
    render_card,
    split_card,
)
from dcsurgery.publishing.picture import PICTURE_FILE
from dcsurgery.publishing.target import MAIN
from dcsurgery.publishing.tried import Tried, write_section
from dcsurgery.surgery.delta_readme import BEGIN, END
from dcsurgery.surgery.plan_file import PLAN_FILE, SurgeryPlan, TrainingRecord
from dcsurgery.surgery.portable import CODE_FILE

CITATION = """@inproceedings{yao2024dense,
  title     = {Dense Connector for MLLMs},
  author    = {Yao, Huanjin and Wu, Wenhao and Yang, Taojiannan and Song, Yuxin and Zhang, Mengxi
               and Feng, Haocheng and Sun, Yifan and Li, Zhiheng and Ouyang, Wanli
               and Wang, Jingdong},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2405.13800}
}"""
PAPER = "[Dense Connector](https://arxiv.org/abs/2405.13800)"
TRAINED = {
    "connector": "the connector",
    "projector": "the connector and the projector",
    "lora": "the connector, the projector and LoRA adapters of the language model",
    "full": "the connector, the projector and the language model",
}


@dataclass(frozen=True)
class CardFacts:
    """All a card may speak of. `report` is a verification as JSON; paths are those in the repo."""

    repo_id: str
    branch: str
    plan: SurgeryPlan
    base: PublicBase
    licence: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    evaluations: tuple[tuple[str, EvalReport], ...] = ()
    endpoint: str = ""
    tried: Tried | None = None


def write_card(facts: CardFacts, old: str | None) -> str:
    """Return the card: a new one, or `old` with our section and metadata brought up to date.

    Raises PublishError when the metadata of `old` cannot be read.
    """
    metadata, body = split_card(old) if old is not None else ({}, "")
    ours = _metadata(facts, metadata)
    index = ours.pop("model-index")
    merged = merge_metadata(metadata, lenient_metadata(facts.base.card), ours)
    merged.pop("model-index", None)
    if index:
        merged["model-index"] = index
    return render_card(merged, _place(body, _section(facts), facts))


def _metadata(facts: CardFacts, old: dict[str, Any]) -> dict[str, Any]:
    name = facts.repo_id.split("/")[1]
    url = f"{facts.endpoint}/{facts.repo_id}/blob/{facts.branch}"
    reports = [(report, f"{url}/{path}") for path, report in facts.evaluations]
    libraries = {"stock": "transformers", "portable": "transformers", "delta": "dcsurgery"}
    library = libraries.get(facts.plan.form, "llava")
    ours: dict[str, Any] = {
        **facts.licence,
        "library_name": library,
    }
    if facts.base.repo_id:
        ours["base_model"] = facts.base.repo_id
        ours["base_model_relation"] = "adapter" if facts.plan.form == "delta" else "finetune"
    ours["tags"] = ["dense-connector", "dcsurgery", facts.plan.kind]
    ours["tags"] += ["custom_code"] if facts.plan.form == "portable" else []
    ours["model-index"] = model_index(name, old.get("model-index"), reports)
    return ours


def _place(body: str, section: str, facts: CardFacts) -> str:
    """Put our section between its marks, or behind the text of whoever wrote the card."""
    ours = f"{BEGIN}\n\n{section}\n\n{END}"
    before, found, rest = body.partition(BEGIN)
    if found:
        _, ended, after = rest.partition(END)
        return before + ours + (after if ended else "")
    if body.strip():
        return f"{body.rstrip()}\n\n{ours}"
    return f"# {facts.repo_id.split('/')[1]}\n\n{ours}"


def _section(facts: CardFacts) -> str:
    parts = [
        _what(facts),
        "## How to load it\n\n" + _loading(facts),
        "## The connector\n\n" + _connector(facts.plan),
        "## What was trained\n\n" + _training(facts.plan),
        *(["## Evaluation\n\n" + _evaluation(facts)] if facts.evaluations else []),
        *(["## The trial\n\n" + write_section(facts.tried)] if facts.tried else []),
        "## What was verified\n\n" + _verification(facts),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts)


def _what(facts: CardFacts) -> str:
    plan, base = facts.plan, facts.base
    named = f"[{base.repo_id}]({facts.endpoint}/{base.repo_id})" if base.repo_id else plan.base.id
    at = f" at commit `{base.commit}`" if base.commit else ""
    what = "A delta, without base weights: " if plan.form == "delta" else "A complete checkpoint: "
    return (
        f"{what}{named}{at} with a {PAPER}, `{name_connector(plan)}`, installed by "
        f"`{plan.tool}`. The {plan.architecture} projector now reads further hidden states of its "
        f"vision tower. [`{PLAN_FILE}`]({PLAN_FILE}) says exactly what was changed."
    )


def _loading(facts: CardFacts) -> str:
    plan = facts.plan
    where = f'"{facts.repo_id}"'
    if facts.branch != MAIN:
        where += f', revision="{facts.branch}"'
    if plan.form == "stock":
        return (
            f"Needs {plan.loader} and nothing else.\n\n```python\n"
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'model = AutoModelForImageTextToText.from_pretrained({where}, dtype="auto")\n'
            f"processor = AutoProcessor.from_pretrained({where})\n```"
        )
    if plan.form == "portable":
        return _portable_loading(plan, where)
    if plan.form == "reference":
        return f"Needs {plan.loader}: the weights have its names, the first matrix is widened."
    processor = where if plan.processor_changes else f'"{facts.base.repo_id}"'
    return (
        "Needs `dcsurgery`, which fetches the base and attaches the connector to it. Plain "
        "transformers cannot load it.\n\n```python\n"
        "import dcsurgery\nfrom transformers import AutoProcessor\n\n"
        f"model = dcsurgery.load({where})\n"
        f"processor = AutoProcessor.from_pretrained({processor})\n```"
    )


def _portable_loading(plan: SurgeryPlan, where: str) -> str:
    repository = where.partition(",")[0]
    return (
        f"Needs {plan.loader}.\n\n```python\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f"model = AutoModelForImageTextToText.from_pretrained(\n    {where}, "
        'dtype="auto", trust_remote_code=True\n)\n'
        f"processor = AutoProcessor.from_pretrained({where})\n```\n\n"
        f"```bash\nvllm serve {json.loads(repository)} --trust-remote-code\n```\n\n"
        f"`{CODE_FILE}` (SHA-256 `{plan.code_sha256}`) is the one file of code: it is the same in "
        "every folder of this form, imports torch and transformers alone, and reads what differs "
        "between models from `config.json`. It runs as you do, so pin what you have read: pass a "
        "commit of this repository as `revision` and as `code_revision`. Code that does not know "
        "the connector stops at the shape of the first matrix; it never answers as the base."
    )


def _connector(plan: SurgeryPlan) -> str:
    lines = [
        f"![Which hidden states reach the projector]({PICTURE_FILE})",
        f"```\n{write_formula(plan)}\n```",
        "`h[i]` is hidden state i of the vision tower (state zero the embeddings), `x` the feature "
        "the base reads, `W` the projector's first matrix, `D` the new one.",
        f"{plan.new_parameters:,} new parameters, {plan.image_tokens:,} image tokens per image.",
    ]
    if plan.notes:
        lines.append("\n".join(f"- {note}" for note in plan.notes))
    return "\n\n".join(lines)


def _training(plan: SurgeryPlan) -> str:
    if not plan.training:
        how = "the model computes what its base computes"
        if plan.init == "paper":
            how = "connector and projector are random: train it before use"
        elif plan.layout.changes_tokens:
            how = "the base has not learned to use the changed image tokens"
        return f"Nothing yet: {how}."
    return "\n\n".join(_record(record) for record in plan.training)


def _record(record: TrainingRecord) -> str:
    lost = Losses(record.cut_rows, record.cut_answers, record.dropped)
    lines = lost.lines(record.settings.get("max_length", 0))
    lines += ["never had a gradient: " + ", ".join(record.untouched)] if record.untouched else []
    rows = {
        "trained": f"{TRAINED[record.train]} ({record.trained_parameters:,} parameters)",
        "data": f"{record.data}, {record.rows:,} rows, {record.skipped_rows:,} skipped",
        **({"lost": "; ".join(lines)} if lines else {}),
        "data SHA-256": f"`{record.data_sha256}`",
        "length": f"{record.steps:,} steps of {record.batch_size:,} rows, {_short(record.epochs)} "
        "epochs",
        "loss": f"{_short(record.first_loss)} at first, {_short(record.last_loss)} at last",
        "seed": str(record.seed),
        "took": f"{_short(record.seconds)} s on {record.device}",
        **{name: f"{value}" for name, value in record.settings.items() if _is_plain(value)},
        "versions": ", ".join(f"{name} {value}" for name, value in record.versions.items()),
    }
    return _table(("", ""), [(name, value) for name, value in rows.items()])


def _is_plain(value: Any) -> bool:
    return value is not None and isinstance(value, str | int | float)


def _verification(facts: CardFacts) -> str:
    if facts.report is None:
        return "Not verified before it was pushed."
    rows = []
    for check in facts.report["checks"]:
        verdict = "passed" if check["passed"] else "FAILED"
        rows.append((verdict, check["name"], check["measured"], check["limit"]))
    text = "`dcsurgery verify` compared this model with its base before it was pushed."
    return f"{text}\n\n{_table(('', 'check', 'measured', 'limit'), rows)}"


def _evaluation(facts: CardFacts) -> str:
    parts = []
    for path, report in facts.evaluations:
        skipped = f", {report.skipped_rows:,} skipped" if report.skipped_rows else ""
        parts.append(
            f"{report.metric} on {report.data} ({report.rows:,} rows{skipped}): mean with its "
            f"bootstrap interval, and the difference to the first model ({report.test}). "
            f"[`{path}`]({path})"
        )
        rows = []
        for result in report.models:
            rows.append((result.model, "all", *_scores(result.score, result.against_first)))
            rows += [
                (result.model, kind, *_scores(score, result.against_first_by_type.get(kind)))
                for kind, score in result.by_type.items()
            ]
        columns = ("model", "questions", "rows", report.metric, "difference", "p")
        parts.append(_table(columns, rows))
    return "\n\n".join(parts)


def _scores(score: Score, against: Comparison | None) -> tuple[str, str, str, str]:
    mean = f"{_short(score.mean)} [{_short(score.low)}, {_short(score.high)}]"
    if against is None:
        return f"{score.rows:,}", mean, "", ""
    span = f"{_short(against.difference)} [{_short(against.low)}, {_short(against.high)}]"
    return f"{score.rows:,}", mean, span, _short(against.p_value)


def _short(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(table(columns, rows))
