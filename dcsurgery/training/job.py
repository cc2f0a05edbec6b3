"""What is to be trained, on what, as every part of a training reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dcsurgery.data.rows import data_digest
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
        settings = asdict(self.settings)
        return {
            "settings": {name: settings[name] for name in settings.keys() - FREE},
            "trained": list(self.trained.names),
            "rows": None if self.feed.streamed else len(self.feed.dataset),
        }
