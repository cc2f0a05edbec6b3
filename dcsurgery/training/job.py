"""What is to be trained, on what, as every part of a training reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcsurgery.connectors.request import Connector
from dcsurgery.data.batches import Collator, StreamedDataset, TrainingDataset
from dcsurgery.data.prompts import Prompter
from dcsurgery.data.rows import Rows, data_digest, read_rows
from dcsurgery.data.templates import prompt_version
from dcsurgery.errors import RequestError
from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.training.feeding import Feed
from dcsurgery.training.freeze import Trained
from dcsurgery.training.settings import FREE, TrainingSettings


@dataclass(frozen=True)
class Request:
    """What finetune was asked for: a model, where its `base` is now, the `connector` that an
    unconverted one gets, with `towers` and `template` as convert takes them; data, and how to read
    it.
    """

    model: str | Path
    data: str | Path
    settings: TrainingSettings
    images: Path | None = None
    connector: Connector | None = None
    split: str = "train"
    streaming: bool = False
    columns: Mapping[str, str] | None = None
    revision: str | None = None
    base: str | Path | None = None
    towers: Mapping[str, str] | None = None
    template: str | None = None
    resume: bool = False
    overwrite: bool = False

    def identity(self, images: Path | None) -> dict[str, Any]:
        """Return what of the data must be the same for a training to go on.

        `images` is the folder that image paths start from, given or not.
        """
        return {
            "data": data_digest(self.data),
            "images": None if images is None else str(images.resolve()),
            "split": self.split,
            "columns": [f"{word}={name}" for word, name in sorted((self.columns or {}).items())],
        }


@dataclass(frozen=True)
class Job:
    """One training: which parameters of which surgery, how, for how many updates, on which rows."""

    plan: SurgeryPlan
    settings: TrainingSettings
    trained: Trained
    steps: int
    feed: Feed

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        settings = asdict(self.settings)
        return {
            "settings": {name: settings[name] for name in settings.keys() - FREE},
            "trained": list(self.trained.names),
            "rows": None if self.feed.streamed else len(self.feed.dataset),
        }


def open_rows(asked: Request) -> Rows:
    """Open the data of a training. Raises RequestError, also for settings it cannot follow."""
    rows = read_rows(
        asked.data,
        images=asked.images,
        split=asked.split,
        streaming=asked.streaming,
        columns=asked.columns,
    )
    if rows.streamed and asked.settings.orientation == "raw":
        raise RequestError(
            "the pictures of a stream arrive turned as their EXIF tag says",
            hint="leave out --streaming, or --orientation raw",
        )
    return rows


def open_feed(rows: Rows, processor: Any, settings: TrainingSettings) -> Feed:
    """Return rows encoded by a model's processor, and what joins them into batches.

    Raises RequestError when too many of them are bad, or none has a picture.
    """
    prompter = Prompter(
        processor,
        version=prompt_version(settings.prompt or "auto"),
        aspect=settings.aspect,
        orientation=settings.orientation,
    )
    kind = StreamedDataset if rows.streamed else TrainingDataset
    dataset = kind(rows, prompter, max_length=settings.max_length, max_bad=settings.max_bad)
    return Feed(dataset, Collator(processor))
