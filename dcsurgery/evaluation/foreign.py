"""Score answers that any other engine gave: no model is loaded, torch is not needed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dcsurgery import __version__
from dcsurgery.data.options import answer_text
from dcsurgery.data.rows import Rows, data_digest, read_rows
from dcsurgery.data.tally import BadRows, checked_percent
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.answers import AnswerFile
from dcsurgery.evaluation.eval_report import EvalReport, Matching
from dcsurgery.evaluation.metrics import VERSION, check_metric
from dcsurgery.evaluation.questions import usable_rows
from dcsurgery.evaluation.summary import NAMED, Scored, write_summary

IDS = ("id", "question_id", "questionId", "qid", "index")
# Files that hold the reference too call it "answer", and the question "text".
ANSWERS = (
    "prediction", "response", "model_answer", "output", "generated_text", "pred", "answer", "text",
)  # fmt: skip
# Beside one of these "answer" and "text" are the reference and the question.
PREDICTED = re.compile("pred|output|respon|generat|hypoth|complet", re.IGNORECASE)


@dataclass
class Given:
    """The answers of one model: its name, texts by row id, and by place where lines name it."""

    name: str
    texts: dict[str, list[str]] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)


def score_answers(  # noqa: PLR0913 - one keyword per CLI option, by design
    data: str | Path,
    answers: Sequence[str | Path],
    output: str | Path,
    *,
    images: str | Path | None = None,
    metric: str = "exact",
    limit: int | None = None,
    max_bad: float | str = 1.0,
    seed: int = 0,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> EvalReport:
    """Score files of answers on rows with reference answers; report as evaluate_checkpoints does.

    Each of `answers` is a model: JSONL or JSON whose lines have a row's id and an answer, or the
    answers.jsonl of an evaluation. Rows without an answer are not scored; they, ids that no row has
    and ids with several answers are counted and named. Pictures are not opened. Raises
    RequestError or OutputExistsError.
    """
    started = time.monotonic()
    check_metric(metric)
    if metric == "loss":
        raise RequestError("--metric loss needs a model", hint="use exact, vqa or choice")
    if not answers:
        raise RequestError("there are no answers to score", hint="name a file of answers")
    if limit is not None and limit < 1:
        raise RequestError(f"--limit {limit} is too small", hint="use 1 or more")
    max_bad = checked_percent(max_bad)
    given = [each for path in answers for each in _read(Path(path))]
    folder = None if images is None else Path(images)
    rows = read_rows(data, images=folder, split=split, revision=revision, columns=columns)
    questions = usable_rows(rows, metric, BadRows(len(rows), max_bad), limit=limit, pictures=False)
    places = _places(rows) if any(each.texts for each in given) else {}
    digest = data_digest(data)
    header = {
        "data_sha256": digest,
        "source": {"split": split, "revision": revision, "columns": dict(columns or {})},
        "models": [data_digest(path) for path in answers],
        "settings": {"metric": metric},
        "scoring": {"version": VERSION, **questions.reading},
    }
    matched = [_match(each, places, {at for at, _ in questions.rows}) for each in given]
    file = AnswerFile(Path(output), header, overwrite=overwrite)
    for model, (texts, _) in enumerate(matched):
        file.add(
            [
                questions.judge(model, at, row, texts[at])
                for at, row in questions.rows
                if at in texts and (model, at) not in file.found
            ]
        )
    scored = Scored(
        questions,
        [each.name for each in given],
        [file.of(model) for model in range(len(given))],
        [matching for _, matching in matched],
    )
    return write_summary(
        scored,
        Path(output),
        data=str(data),
        data_sha256=digest,
        settings={"metric": metric, "limit": limit, "max_bad": max_bad, "seed": seed},
        seconds=round(time.monotonic() - started, 3),
        versions={"dcsurgery": __version__},
    )


def _read(path: Path) -> list[Given]:
    """Return the answers in a file: of one model, or of all that an evaluation of ours asked."""
    if not path.is_file():
        raise RequestError(f"there is no file of answers {path}", hint="name a .jsonl file")
    records = read_rows(path).records()
    first = next(records)
    if isinstance(first, Mapping) and {"data_sha256", "models"} <= first.keys():
        return _own(path, len(first["models"]), records)
    given = Given(str(path))
    for number, record in enumerate([first, *records], 1):
        name, text = _entry(record, f"{path}, entry {number}")
        given.texts.setdefault(name, []).extend([] if text is None else [text])
    return [given]


def _own(path: Path, models: int, records: Iterator[Any]) -> list[Given]:
    names = [str(path)] if models == 1 else [f"{path} model {at + 1}" for at in range(models)]
    given = [Given(name) for name in names]
    for record in records:
        try:
            text = record["answer"]
            if text is not None:
                given[record["model"]].places[record["row"]] = text
        except (TypeError, KeyError, IndexError):
            raise RequestError(
                f"{path} is not a whole answers.jsonl of an evaluation",
                hint="write lines with id and answer",
            ) from None
    if not any(each.places for each in given):
        raise RequestError(f"{path} has no words, only losses", hint="score what a model said")
    return given


def _entry(record: Any, where: str) -> tuple[str, str | None]:
    """Return the id and the answer of a line; None where it has none."""
    if not isinstance(record, Mapping):
        raise RequestError(f"{where} is {record}", hint='write {"id": "q1", "answer": "red"}')
    name = next((record[key] for key in IDS if record.get(key) is not None), None)
    key = next((key for key in ANSWERS if key in record), None)
    if name is None or key is None:
        wanted = f"id ({', '.join(IDS)})" if name is None else f"answer ({', '.join(ANSWERS)})"
        raise RequestError(
            f"{where} has no {wanted}; its keys are {', '.join(map(str, record))[:200]}",
            hint='write {"id": "q1", "answer": "red"}, one a line',
        )
    value = record[key]
    rivals = (name for name in record if PREDICTED.search(name) and isinstance(record[name], str))
    if key in ANSWERS[-2:] and (rival := next(rivals, None)):
        raise RequestError(
            f"{where}: both {key!r} and {rival!r} may be what the model said",
            hint='call it "prediction"',
        )
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | Mapping):
        raise RequestError(f"{where}: {key!r} is not a text", hint="write one answer a line")
    return str(name)[:100], None if value is None else answer_text(value)


def _places(rows: Rows) -> dict[str, int]:
    """Return where every id of the data is. Raises RequestError where one is there twice."""
    found: dict[str, int] = {}
    twice: list[str] = []
    for index in range(len(rows)):
        name = rows.name_of(index)
        twice += [name] if name in found else []
        found[name] = index
    if twice:
        raise RequestError(
            f"{len(twice)} rows of {rows.name} have the id of another: {', '.join(twice[:3])}",
            hint="give every row an id of its own, so that answers find it",
        )
    return found


def _match(
    given: Given, places: Mapping[str, int], wanted: set[int]
) -> tuple[dict[int, str], Matching]:
    """Return texts by the rows' places, and what of file and rows found no partner."""
    texts = dict(given.places)
    unknown = [name for name in given.texts if name not in places]
    repeated = [name for name, said in given.texts.items() if len(said) > 1]
    for name, said in given.texts.items():
        if name in places and len(set(said)) == 1:
            texts[places[name]] = said[0]
    names = {index: name for name, index in places.items()}
    missing = [names.get(at, f"row {at + 1}") for at in sorted(wanted - texts.keys())]
    return texts, Matching(
        missing=len(missing), missing_ids=missing[:NAMED],
        repeated=len(repeated), repeated_ids=repeated[:NAMED],
        unknown=len(unknown), unknown_ids=unknown[:NAMED],
    )  # fmt: skip
