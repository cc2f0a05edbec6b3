"""Checkpoints in formats of other code bases, opened as the Hugging Face models they mean.

One file per format exports a `FORMAT`; the file is the registration.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dcsurgery.architectures import refuse_known
from dcsurgery.checkpoint.contents import Checkpoint, open_checkpoint
from dcsurgery.errors import RequestError, UnknownArchitectureError
from dcsurgery.originals.adopted import Adopted, Template, TowerRecord
from dcsurgery.originals.format import OriginalFormat
from dcsurgery.originals.prompts import read_template
from dcsurgery.originals.towers import Towers


@dataclass(frozen=True)
class Hints:
    """What a user says of a model in an original format, and what a plan remembers of it.

    `towers` are --tower NAME=PATH, `template` is --template, `remembered` where towers were.
    `optional` lets the user name a tower for a model that holds its tower itself.
    """

    towers: Mapping[str, str] = field(default_factory=dict)
    template: Template | None = None
    remembered: Mapping[str, TowerRecord] = field(default_factory=dict)
    optional: bool = False


def told(
    towers: Mapping[str, str] | None, template: str | None = None, *, optional: bool = False
) -> Hints:
    """Return the hints a user gives. Raises RequestError for a template that does not exist."""
    chosen = None if template is None else read_template(template)
    return Hints(towers or {}, chosen, optional=optional)


@cache
def formats() -> tuple[OriginalFormat, ...]:
    """Every original format in this package, by name."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    found = (module.FORMAT for module in modules if hasattr(module, "FORMAT"))
    return tuple(sorted(found, key=lambda item: item.name))


def find_format(config: dict[str, Any]) -> OriginalFormat | None:
    """Return the original format of a config, None for a Hugging Face one."""
    return next((item for item in formats() if item.recognises(config)), None)


def open_model(
    model: str | Path,
    revision: str | None = None,
    *,
    weights: bool = False,
    hints: Hints | None = None,
    keep_all: bool = False,
) -> Checkpoint:
    """Open a folder or a Hub model as open_checkpoint does; one in an original format is adopted.

    Weights that are torch's zip files are accepted of original formats alone. Raises
    CheckpointError of the fitting kind, and AnatomyError or UnknownArchitectureError for an
    original that has no Hugging Face form; RequestError for hints that are not for this model.
    """
    hints = hints or Hints()
    source = open_checkpoint(
        model, revision, weights=weights, pickles=_accept_pickles, keep_all=keep_all
    )
    _refuse_mlx(source)
    found = find_format(source.config)
    if found is None:
        if hints.towers and not hints.optional:
            raise RequestError(
                f"{source.ref.name} holds its vision tower itself: --tower is not for it",
                hint="leave --tower out",
            )
        if hints.template is not None:
            raise RequestError(
                f"{source.ref.name} is in Hugging Face's format: its prompts are what its own chat "
                "template says",
                hint="leave --template out; ask, eval and finetune take --prompt v1",
            )
        return source
    return adopt_checkpoint(found, source, hints, weights=weights)


def _is_there(place: str) -> bool:
    """Return whether a remembered place is worth a look: a folder that moved is looked for anew."""
    return bool(place) and (not Path(place).is_absolute() or Path(place).is_dir())


def is_original(config: dict[str, Any]) -> bool:
    """Return whether a config belongs to an original format."""
    return find_format(config) is not None


def _accept_pickles(config: dict[str, Any]) -> bool:
    """Return is_original, after refusing what no weights could make readable."""
    refuse_known(config)
    return is_original(config)


def _refuse_mlx(source: Checkpoint) -> None:
    if any((file.header.metadata or {}).get("format") == "mlx" for file in source.weights):
        raise UnknownArchitectureError(
            f"{source.ref.name} was saved by MLX, which stores convolutions in another order",
            hint="convert the model it was made from; its README names it",
        )


def adopt_checkpoint(
    found: OriginalFormat, source: Checkpoint, hints: Hints, *, weights: bool
) -> Adopted:
    """Return an open original checkpoint as the Hugging Face one. Raises what open_model raises."""
    remembered = {n: item.place for n, item in hints.remembered.items() if _is_there(item.place)}
    finder = Towers(
        given=hints.towers,
        remembered=remembered,
        home=source.ref.folder,
        weights=weights,
        found={} if hints.towers else dict(hints.remembered),
    )
    adopted = found.adopt(source, finder, hints.template)
    stated = [
        str(value) for key, value in source.config.items() if key.startswith("mm_vision_tower")
    ]
    if not hints.optional:
        finder.require_used(hints.towers, stated)
    return adopted
