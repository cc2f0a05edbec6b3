"""What is to be trained, on what, as every part of a training reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.training.feeding import Feed
from dcsurgery.training.freeze import Trained
from dcsurgery.training.settings import TrainingSettings


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
        free = {"save_steps", "report_to", "micro_batch", "grad_checkpointing"}
        return {
            "settings": {k: v for k, v in asdict(self.settings).items() if k not in free},
            "trained": list(self.trained.names),
            "rows": None if self.feed.streamed else len(self.feed.dataset),
        }
