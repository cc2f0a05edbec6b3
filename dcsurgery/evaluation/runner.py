"""Evaluate models side by side on the same rows, one in memory at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from dcsurgery import __version__
from dcsurgery.checkpoint.model_ref import fetch, parse_reference
from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRow, Row
from dcsurgery.data.pictures import Orientation, RowError, read_orientation
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import Aspect, Prompter
from dcsurgery.data.rows import data_digest, read_rows
from dcsurgery.data.tally import BadRows, Tally, checked_percent
from dcsurgery.data.templates import Prompt, prompt_version
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.answers import Answer, AnswerFile, model_digest
from dcsurgery.evaluation.eval_report import EvalReport
from dcsurgery.evaluation.generation import answer_losses, generate_answers, place_model
from dcsurgery.evaluation.metrics import VERSION, check_metric
from dcsurgery.evaluation.questions import Batch, Questions, question_turns, usable_rows
from dcsurgery.evaluation.summary import Scored, write_summary
from dcsurgery.loading.hints import share_hints
from dcsurgery.loading.load import load_model
from dcsurgery.printing.sheet import Progress
from dcsurgery.surgery.plan_file import PLAN_FILE, read_plan
from dcsurgery.verification.models import free_memory


@dataclass(frozen=True)
class EvalSettings:
    """How to evaluate. All of it but batch_size and device belongs to the identity of a result.

    `limit` takes the first rows only; `max_bad` is a percentage ("0.5%" too); `prompt` "auto" is
    the model's chat template, "plain" and "v1" are LLaVA's; `aspect` and `orientation` as in
    Prompter; `dtype` is a torch name or "auto", the checkpoint's own; `device` None takes a GPU if
    there is one.
    """

    metric: str = "exact"
    batch_size: int = 8
    max_new_tokens: int = 32
    limit: int | None = None
    max_bad: float | str = 1.0
    seed: int = 0
    prompt: Prompt = "auto"
    aspect: Aspect = "processor"
    orientation: Orientation = "exif"
    dtype: str = "auto"
    device: str | None = None

    def check(self) -> None:
        """Raise RequestError for a value that cannot be meant."""
        check_metric(self.metric)
        prompt_version(self.prompt)
        counts = {"batch-size": self.batch_size, "max-new-tokens": self.max_new_tokens}
        counts |= {} if self.limit is None else {"limit": self.limit}
        for name, value in counts.items():
            if value < 1:
                raise RequestError(f"--{name} {value} is too small", hint="use 1 or more")
        read_orientation(self.orientation)
        checked_percent(self.max_bad)
        named = getattr(torch, self.dtype, None)
        floating = isinstance(named, torch.dtype) and named.is_floating_point
        if self.dtype != "auto" and not floating:
            raise RequestError(
                f"--dtype {self.dtype} is unknown", hint="use auto, float32, bfloat16 or float16"
            )


def evaluate_checkpoints(  # noqa: PLR0913 - one keyword per CLI option, by design
    models: Sequence[str | Path],
    data: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    settings: EvalSettings | None = None,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    base: str | Path | None = None,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> EvalReport:
    """Evaluate models on rows with reference answers and write report.json, report.png, answers.

    `models` are folders or Hub ids of any form; the first is what the others are compared with.
    `split` and `revision` are of a Hugging Face data set, `columns` as in read_rows; `base`,
    `towers` and `template` are as in load_model, for the models that take them; `progress` is
    called with the rows done, all rows and the model, `tell` with warnings before the work. An
    evaluation that was interrupted goes on where it stopped. Raises RequestError, CheckpointError
    or OutputExistsError.
    """
    chosen = settings or EvalSettings()
    chosen.check()
    if not models:
        raise RequestError("there is no model to evaluate", hint="name a folder or a Hub id")
    started = time.monotonic()
    folder = None if images is None else Path(images)
    rows = read_rows(data, images=folder, split=split, revision=revision, columns=columns)
    bad = BadRows(len(rows), chosen.max_bad)
    questions = usable_rows(rows, chosen.metric, bad, limit=chosen.limit)
    for warning in Census.of(row for _, row in questions.rows).warnings():
        if tell is not None:
            tell(warning)
    names = [str(model) for model in models]
    hints = share_hints([(name, None) for name in names], towers, template)
    folders = [fetch(parse_reference(name)).folder for name in names]
    digest = data_digest(data)
    placed = [_base_for(folder, base) for folder in folders]
    if base is not None and not any(placed):
        raise RequestError("--base is for a delta, and no model here is one", hint="leave it out")
    # What the data's digest does not tell: which pictures, which part of a data set.
    source = {
        "images": None if folder is None else str(folder.resolve()),
        "split": split,
        "revision": revision,
        **{key: value for each in hints for key, value in each.items() if value},
        "columns": dict(columns or {}),
    }
    header = {
        "data_sha256": digest,
        "source": source,
        "models": [model_digest(folder) if folder else "" for folder in folders],
        "settings": _identity(chosen),
        "scoring": {"version": VERSION, **questions.reading},
    }
    answers = AnswerFile(Path(output), header, overwrite=overwrite)
    dropped: dict[str, dict[str, int]] = {}
    for index, name in enumerate(names):
        model = _Model(index, name, chosen, questions, {**hints[index], **placed[index]})
        dropped |= model.answer(answers, progress)
    scored = Scored(
        questions, names, [answers.of(i) for i in range(len(names))], [None] * len(names)
    )
    return write_summary(
        scored,
        Path(output),
        data=str(data),
        data_sha256=digest,
        dropped=dropped,
        settings={**asdict(chosen), "version": prompt_version(chosen.prompt)},
        seconds=round(time.monotonic() - started, 3),
        versions={
            "dcsurgery": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    )


def _base_for(folder: Path | None, base: str | Path | None) -> dict[str, Any]:
    """Return the keyword `base` of load_model where a model may be a delta."""
    if base is None or (folder is not None and not (folder / PLAN_FILE).is_file()):
        return {}
    return {"base": base} if folder is None or read_plan(folder).form == "delta" else {}


def _identity(settings: EvalSettings) -> dict[str, Any]:
    """The settings that answers depend on."""
    found = asdict(settings)
    for name in ("batch_size", "device", "limit", "max_bad", "seed"):
        del found[name]
    return found


@dataclass
class _Model:
    """One of the models, and what it is asked."""

    index: int
    name: str
    settings: EvalSettings
    questions: Questions
    hints: Mapping[str, Any]

    def answer(self, answers: AnswerFile, progress: Progress | None) -> dict[str, dict[str, int]]:
        """Answer the rows that this model has not answered yet, and note them as they come.

        Return, under its name, of how many rows its prompt leaves something out.
        """
        usable, bad = self.questions.rows, self.questions.bad
        done = answers.of(self.index)
        prompter = Prompter(
            load_processor(self.name, **self.hints),
            version=prompt_version(self.settings.prompt),
            aspect=self.settings.aspect,
            orientation=self.settings.orientation,
        )
        dropped = self._dropped(prompter)
        left = [(at, row) for at, row in usable if at not in done and at not in bad]
        if not left:
            return dropped
        model = _loaded(self.name, self.settings, self.hints)
        finished = len(usable) - len(left)
        for batch in batches(left, self.settings.batch_size):
            answers.add(self._answer(model, prompter, batch))
            bad.check()
            finished += len(batch)
            if progress is not None:
                progress(finished, len(usable), self.name)
        del model
        free_memory()
        return dropped

    def _dropped(self, prompter: Prompter) -> dict[str, dict[str, int]]:
        tally, generate = Tally(), self.settings.metric != "loss"
        for at, row in self.questions.rows:
            turns = question_turns(row) if generate else row.turns
            with suppress(RowError):  # named when it is answered
                tally.drop(at, prompter.dropped(turns, generate=generate))
        found = tally.counts().dropped
        return {self.name: found} if found else {}

    def _answer(self, model: Any, prompter: Prompter, batch: Batch) -> list[Answer]:
        prepared: list[tuple[int, Row, Any]] = []
        for at, row in batch:
            try:
                prepared.append((at, row, self._prepare(prompter, row)))
            except RowError as error:
                self.questions.bad.add(at, BadRow.of(row.id, error))
        if not prepared:
            return []
        inputs = [each for _, _, each in prepared]
        if self.settings.metric == "loss":
            losses = answer_losses(model, prompter, inputs)
            return [
                Answer(self.index, at, row.id, loss, tokens=tokens)
                for (at, row, _), (loss, tokens) in zip(prepared, losses, strict=True)
            ]
        said = generate_answers(model, prompter, inputs, self.settings.max_new_tokens)
        return [
            self.questions.judge(self.index, at, row, text)
            for (at, row, _), text in zip(prepared, said, strict=True)
        ]

    def _prepare(self, prompter: Prompter, row: Row) -> Any:
        if self.settings.metric == "loss":
            return prompter.encode(row).values
        turns = question_turns(row)
        shown = sum(turn.pictures for turn in turns)
        return prompter.prompt(turns, prompter.open(row.images[:shown]))


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
