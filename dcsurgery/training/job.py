"""What is to be trained, on what, as every part of a training reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

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
class Data:
    """What to train on: a file, folder or Hub data set, and how to read it."""

    data: str | Path
    images: Path | None = None
    split: str = "train"
    streaming: bool = False
    columns: Mapping[str, str] | None = None

    def identity(self, images: Path | None) -> dict[str, Any]:
        """Return what must be the same for a training to go on: a new field is part of it.

        `images` is the folder that image paths start from, given or not.
        """
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        del given["streaming"]
        folder = None if images is None else str(images.resolve())
        given["columns"] = [f"{word}={name}" for word, name in sorted((self.columns or {}).items())]
        return {**given, "data": data_digest(self.data), "images": folder}


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
        return {
            "settings": self.settings.model_dump(mode="json", exclude=set(FREE)),
            "trained": list(self.trained.names),
            "rows": None if self.feed.streamed else len(self.feed.dataset),
        }


def open_rows(source: Data, settings: TrainingSettings) -> Rows:
    """Open the data of a training. Raises RequestError, also for settings it cannot follow."""
    rows = read_rows(
        source.data,
        images=source.images,
        split=source.split,
        streaming=source.streaming,
        columns=source.columns,
    )
    if rows.streamed and settings.orientation == "raw":
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
        version=prompt_version(settings.prompt),
        aspect=settings.aspect,
        orientation=settings.orientation,
    )
    kind = StreamedDataset if rows.streamed else TrainingDataset
    dataset = kind(rows, prompter, max_length=settings.max_length, max_bad=settings.max_bad)
    return Feed(dataset, Collator(processor))
