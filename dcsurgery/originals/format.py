"""What an original format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.originals.adopted import Adopted, Template
from dcsurgery.originals.towers import Towers


@dataclass(frozen=True)
class OriginalFormat:
    """One code base's own way to store a model.

    `recognises(config)` tells it from config.json alone; `adopt(source, towers, template)` presents
    the checkpoint as the Hugging Face model it means, from headers and small files alone, its
    prompts written as `template` says (None: as the checkpoint tells).
    """

    name: str
    recognises: Callable[[dict[str, Any]], bool]
    adopt: Callable[[Checkpoint, Towers, Template | None], Adopted]
