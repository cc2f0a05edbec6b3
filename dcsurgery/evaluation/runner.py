"""Evaluate models side by side on the same rows, one in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dcsurgery.checkpoint.model_ref import fetch, parse_reference
from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRow, BadRows, Row, Turn, for_training
from dcsurgery.data.pictures import Orientation, RowError, read_orientation
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import Aspect, Prompter
from dcsurgery.data.rows import Rows, data_digest, read_rows
from dcsurgery.data.templates import Version
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.answers import Answer, AnswerFile, model_digest
from dcsurgery.evaluation.chart import draw_report
from dcsurgery.evaluation.eval_report import EvalReport
from dcsurgery.evaluation.generation import answer_losses, generate_answers, place_model
from dcsurgery.evaluation.metrics import score, with_options
from dcsurgery.evaluation.summary import Scored, summarise
from dcsurgery.loading.hints import share_hints
from dcsurgery.loading.load import load_model
from dcsurgery.verification.models import free_memory

METRICS = ("exact", "vqa", "loss", "choice")
Progress = Callable[[str, int, int], None]
Batch = list[tuple[int, Row]]


@dataclass(frozen=True)
class EvalSettings:
    """How to evaluate. All of it but batch_size and device belongs to the identity of a result.

    `limit` takes the first rows only; `max_bad` is a share; `version`, `aspect` and `orientation`
    as in Prompter; `dtype` is a torch name or "auto", the checkpoint's own; `device` None takes a
    GPU if there is one.
    """

    metric: str = "exact"
    batch_size: int = 8
    max_new_tokens: int = 32
    limit: int | None = None
    max_bad: float = 0.01
    seed: int = 0
    version: Version | None = None
    aspect: Aspect = "processor"
    orientation: Orientation = "exif"
    dtype: str = "auto"
    device: str | None = None

    def check(self) -> None:
        """Raise RequestError for a value that cannot be meant."""
        if self.metric not in METRICS:
            raise RequestError(
                f"--metric {self.metric} is unknown", hint=f"choose one of {', '.join(METRICS)}"
            )
        counts = {"batch-size": self.batch_size, "max-new-tokens": self.max_new_tokens}
        counts |= {} if self.limit is None else {"limit": self.limit}
        for name, value in counts.items():
            if value < 1:
                raise RequestError(f"--{name} {value} is too small", hint="use 1 or more")
        read_orientation(self.orientation)
        if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise RequestError(
                f"--dtype {self.dtype} is unknown", hint="use auto, float32, bfloat16 or float16"
            )


def evaluate_checkpoints(
    models: Sequence[str | Path],
    data: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    settings: EvalSettings | None = None,
    **options: Any,
) -> EvalReport:
    """Evaluate models on rows with reference answers and write report.json, report.png, answers.

    `models` are folders or Hub ids of any form; the first is what the others are compared with.
    `options` are `split` and `revision` of a Hugging Face data set, `columns` as in read_rows,
    `overwrite`, `progress(model, done, rows)`, `tell(text)` for warnings before the work, and
    `towers` and `template` as in load_model, for the models that take them. An
    evaluation that was interrupted goes on where it stopped. Raises RequestError, CheckpointError
    or OutputExistsError.
    """
    chosen = settings or EvalSettings()
    chosen.check()
    if not models:
        raise RequestError("there is no model to evaluate", hint="name a folder or a Hub id")
    started = time.monotonic()
    options["images"] = images
    run = _Run(list(map(str, models)), str(data), Path(output), chosen, options)
    rows = read_rows(
        data,
        images=None if images is None else Path(images),
        split=options.get("split") or "train",
        revision=options.get("revision"),
        columns=options.get("columns"),
    )
    return run.finish(rows, started)


@dataclass
class _Run:
    models: list[str]
    data: str
    output: Path
    settings: EvalSettings
    options: Mapping[str, Any]
    hints: list[dict[str, Any]] = field(default_factory=list)

    def finish(self, rows: Rows, started: float) -> EvalReport:
        bad = BadRows(len(rows), self.settings.max_bad)
        usable = usable_rows(rows, self.settings, bad)
        tell: Callable[[str], None] = self.options.get("tell") or (lambda text: None)
        for warning in Census.of(row for _, row in usable).warnings():
            tell(warning)
        self.hints = share_hints(
            [(model, None) for model in self.models],
            self.options.get("towers"),
            self.options.get("template"),
        )
        folders = [fetch(parse_reference(model)).folder for model in self.models]
        digest = data_digest(self.data)
        header = {
            "data_sha256": digest,
            "source": self._source(),
            "models": [model_digest(folder) if folder else "" for folder in folders],
            "settings": self._identity(),
        }
        overwrite = bool(self.options.get("overwrite"))
        answers = AnswerFile(self.output, header, overwrite=overwrite)
        for index in range(len(self.models)):
            self._evaluate(index, usable, answers, bad)
        scored = Scored(usable, bad, [self._of(answers, i) for i in range(len(self.models))])
        report = summarise(scored, self.models, self.data, digest, self._described(started))
        (self.output / "report.json").write_text(report.model_dump_json(indent=2) + "\n")
        draw_report(report, self.output / "report.png")
        return report

    def _source(self) -> dict[str, Any]:
        """What the data's digest does not tell: which pictures, which part of a data set."""
        images = self.options.get("images")
        return {
            "images": None if images is None else str(Path(images).resolve()),
            "split": self.options.get("split") or "train",
            "revision": self.options.get("revision"),
            **{key: value for each in self.hints for key, value in each.items() if value},
            "columns": dict(self.options.get("columns") or {}),
        }

    def _identity(self) -> dict[str, Any]:
        """The settings that answers depend on."""
        found = asdict(self.settings)
        for name in ("batch_size", "device", "limit", "max_bad", "seed"):
            del found[name]
        return found

    def _described(self, started: float) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "seconds": time.monotonic() - started}

    @staticmethod
    def _of(answers: AnswerFile, model: int) -> dict[int, Answer]:
        return {row: found for (at, row), found in answers.found.items() if at == model}

    def _evaluate(self, index: int, usable: Batch, answers: AnswerFile, bad: BadRows) -> None:
        """Answer the rows that this model has not answered yet, and note them as they come."""
        done = self._of(answers, index)
        left = [(at, row) for at, row in usable if at not in done and at not in bad]
        if not left:
            return
        name = self.models[index]
        prompter = Prompter(
            load_processor(name, **self.hints[index]),
            version=self.settings.version,
            aspect=self.settings.aspect,
            orientation=self.settings.orientation,
        )
        model = _loaded(name, self.settings, self.hints[index])
        finished = len(usable) - len(left)
        for batch in batches(left, self.settings.batch_size):
            answers.add(self._answer(index, model, prompter, batch, bad))
            bad.check()
            finished += len(batch)
            progress: Progress | None = self.options.get("progress")
            if progress is not None:
                progress(name, finished, len(usable))
        del model
        free_memory()

    def _answer(
        self, index: int, model: Any, prompter: Prompter, batch: Batch, bad: BadRows
    ) -> list[Answer]:
        prepared: list[tuple[int, Row, Any]] = []
        for at, row in batch:
            try:
                prepared.append((at, row, self._prepare(prompter, row)))
            except RowError as error:
                bad.add(at, BadRow(row.id, error.message))
        if not prepared:
            return []
        inputs = [each for _, _, each in prepared]
        if self.settings.metric == "loss":
            losses = answer_losses(model, prompter, inputs)
            return [
                Answer(index, at, row.id, loss, tokens=tokens)
                for (at, row, _), (loss, tokens) in zip(prepared, losses, strict=True)
            ]
        said = generate_answers(model, prompter, inputs, self.settings.max_new_tokens)
        return [
            Answer(index, at, row.id, score(self.settings.metric, text, row), text)
            for (at, row, _), text in zip(prepared, said, strict=True)
        ]

    def _prepare(self, prompter: Prompter, row: Row) -> Any:
        if self.settings.metric == "loss":
            return prompter.encode(row).values
        turns = question_turns(row)
        shown = sum(turn.pictures for turn in turns)
        return prompter.prompt(turns, prompter.open(row.images[:shown]))


def usable_rows(rows: Rows, settings: EvalSettings, bad: BadRows) -> Batch:
    """Return the rows that have what the metric needs, with their places; note the others as bad.

    Raises RequestError when too many are bad or none is left.
    """
    found: Batch = []
    for index, row in enumerate(rows):
        if settings.limit is not None and len(found) == settings.limit:
            break
        if isinstance(row, BadRow):
            bad.add(index, row)
            continue
        try:
            _check_row(row, settings.metric)
        except RowError as error:
            bad.add(index, BadRow(row.id, error.message))
            continue
        found.append((index, row))
    bad.check()
    if not found:
        raise RequestError(f"{rows.name} has no row to evaluate on", hint="see --max-bad")
    return found


def _check_row(row: Row, metric: str) -> None:
    for image in row.images:
        image.check()
    if metric == "loss":
        for_training(row)
        return
    question_turns(row)
    if not any(answer.strip() for answer in row.answers):
        raise RowError("it has no reference answer")


def question_turns(row: Row) -> list[Turn]:
    """Return what a model is asked: all before the last answer, options listed where they are not.

    Raises RowError when there is no question.
    """
    turns = list(row.turns)
    while turns and turns[-1].role == "assistant":
        del turns[-1]
    if not turns or turns[-1].role != "user":
        raise RowError("it has no question")
    last = turns[-1]
    if row.options:
        words = [part for part in last.parts if part is not None]
        asked = with_options("".join(words), row.options)
        parts = (*[None] * last.pictures, asked) if asked != "".join(words) else last.parts
        turns[-1] = Turn("user", parts)
    return turns


def batches(rows: Batch, size: int) -> Iterator[Batch]:
    """Yield rows in batches, rows with pictures and rows of text apart.

    A text row beside a picture attends to an empty one in Mllama; alone it does not.
    """
    for with_pictures in (True, False):
        chosen = [(at, row) for at, row in rows if bool(row.images) == with_pictures]
        for start in range(0, len(chosen), size):
            yield chosen[start : start + size]


def _loaded(name: str, settings: EvalSettings, hints: Mapping[str, Any]) -> Any:
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    return place_model(load_model(name, dtype=dtype, **hints), name, settings.device)
