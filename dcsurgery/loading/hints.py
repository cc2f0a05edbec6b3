"""Which of several models --tower and --template speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dcsurgery.checkpoint.checks import parse_object, read_text
from dcsurgery.checkpoint.contents import CONFIG
from dcsurgery.checkpoint.model_ref import fetch, parse_reference
from dcsurgery.errors import RequestError
from dcsurgery.originals import is_original
from dcsurgery.surgery.plan_file import PLAN_FILE, read_plan

KEYS = ("mm_vision_tower", "mm_vision_tower_aux")


def share_hints(
    models: Sequence[tuple[str | Path, str | None]],
    towers: Mapping[str, str] | None,
    template: str | None,
) -> list[dict[str, Any]]:
    """Return for each (model, revision) the keywords `towers` and `template` of load_model.

    A model is given the towers it names, and the template if it is an original that was never
    converted. Raises RequestError for what fits no model.
    """
    towers = towers or {}
    if not towers and template is None:
        return [{} for _ in models]
    found = [_describe(*model) for model in models]
    known = {name for names, _ in found for name in names}
    for name in sorted(set(towers) - known):
        stated = f"named are {', '.join(sorted(known))}" if known else "leave --tower out"
        raise RequestError(f"--tower names {name!r}, which no model here does", hint=stated)
    if template is not None and not any(takes for _, takes in found):
        raise RequestError(
            "--template is for models in an original format; a converted one carries its template",
            hint="leave --template out, or convert the original with it",
        )
    return [
        {
            "towers": {name: place for name, place in towers.items() if name in names},
            "template": template if takes else None,
        }
        for names, takes in found
    ]


def _describe(model: str | Path, revision: str | None) -> tuple[set[str], bool]:
    """Return the names a model has for its towers, and whether it is an unconverted original."""
    folder = fetch(parse_reference(model, revision)).folder
    if folder is None:
        return set(), False
    if (folder / PLAN_FILE).is_file():
        stated, takes = set(read_plan(folder).base.towers), False
    else:
        path = folder / CONFIG
        config = parse_object(read_text(path), CONFIG) if path.is_file() else {}
        takes = is_original(config)
        stated = {str(config[key]) for key in KEYS if takes and key in config}
    parts = {PurePosixPath(name).name for name in stated}
    return stated | parts | (set(KEYS) if stated else set()), takes
