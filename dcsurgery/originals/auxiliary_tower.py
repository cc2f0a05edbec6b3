"""Mini-Gemini's auxiliary tower: an open_clip ConvNeXt, inside a checkpoint or on its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint, open_checkpoint
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.checkpoint.open_clip import open_open_clip
from dcsurgery.errors import AnatomyError
from dcsurgery.modeling.mini_gemini.original import AUX_TOWER, OPEN_CLIP, renamed
from dcsurgery.originals.adopted import Presented, TowerRecord
from dcsurgery.originals.towers import Towers

KEY = "mm_vision_tower_aux"
TARGET = "model.vision_tower_aux."
# First width of the one ConvNeXt of open_clip that is built with another epsilon.
_XXLARGE = 384


@dataclass(frozen=True)
class AuxTower:
    """A ConvNeXt ready to be presented: tensors under their new names, config as transformers has.

    `tensors` is empty for a tower inside the checkpoint: its tensors are renamed with the others.
    """

    config: dict[str, Any]
    tensors: tuple[Presented, ...]
    inside: bool


def find_tower(source: Checkpoint, towers: Towers) -> AuxTower:
    """Return the auxiliary tower of an original checkpoint.

    Its tensors are looked for in the checkpoint first, then where the config says. Raises
    AnatomyError for one that is incomplete, CheckpointError for one that is missing.
    """
    stated = str(source.config[KEY])
    own = {name: new for name in source.tensors if (new := renamed(name, AUX_TOWER))}
    if own and not towers.names(stated, KEY):
        shapes = {new: source.tensors[name] for name, new in own.items()}
        towers.found[stated] = TowerRecord("")
        return AuxTower(_describe(shapes, stated), (), True)
    if own:
        raise AnatomyError(
            f"the auxiliary tower {stated!r} is inside the checkpoint",
            hint=f"leave --tower {KEY} out: the stored one was trained with the model",
        )
    opened = towers.open(stated, KEY, _open)
    names = {name: new for name in opened.tensors if (new := renamed(_trunk(name), OPEN_CLIP))}
    config = _describe({new: opened.tensors[name] for name, new in names.items()}, stated)
    tensors = tuple(Presented.renamed(opened, name, new) for name, new in names.items())
    return AuxTower(config, tensors, False)


def _open(place: str, commit: str | None, weights: bool) -> Checkpoint:
    """Open open_clip's file, or a folder of timm's that holds the trunk alone."""
    folder = Path(place).expanduser()
    if folder.is_dir() and (folder / "config.json").is_file():
        if not any(folder.glob("open_clip_*.*s*")):
            return open_checkpoint(place, commit, weights=weights, pickles=lambda _: True)
    return open_open_clip(place, commit, weights=weights)


def _trunk(name: str) -> str:
    """Return open_clip's name of a tensor that timm calls without what leads to the trunk."""
    return re.sub(r"^(?:visual\.)?(?:trunk\.)?(?=(?:stem|stages)\.)", "visual.trunk.", name)


def _describe(shapes: Mapping[str, TensorEntry], stated: str) -> dict[str, Any]:
    """Return the ConvNextConfig that the shapes mean. Raises AnatomyError when parts are missing.

    open_clip trains with drop path; the tower is frozen here and never drops.
    """
    stem = shapes.get(f"{TARGET}embeddings.patch_embeddings.weight")
    stages = [_stage(shapes, index) for index in range(_count(shapes, r"stages\.(\d+)\."))]
    widths = [width for width, _ in stages]
    if stem is None or not stages or 0 in (*widths, *(depth for _, depth in stages)):
        raise AnatomyError(
            f"the auxiliary tower {stated!r} is not a whole ConvNeXt: stem or blocks are missing",
            hint=f"name the tower it was trained with: --tower {PurePosixPath(stated).name}=PATH",
        )
    if widths[0] == _XXLARGE:
        raise AnatomyError(
            f"the auxiliary tower {stated!r} is open_clip's convnext_xxlarge, whose norms add 1e-5 "
            "where transformers' ConvNext adds 1e-6",
            hint="the large and base ConvNeXt of open_clip can be read",
        )
    expected = 2 + sum(9 * depth for _, depth in stages) + 4 * (len(stages) - 1) + 2
    if len(shapes) != expected:
        raise AnatomyError(
            f"the auxiliary tower {stated!r} has {len(shapes)} tensors, a ConvNeXt of these depths "
            f"{expected}",
            hint=f"name the tower it was trained with: --tower {PurePosixPath(stated).name}=PATH",
        )
    return {
        "model_type": "convnext",
        "depths": [depth for _, depth in stages],
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_sizes": widths,
        "num_stages": len(stages),
        "patch_size": stem.shape[-1],
    }


def _count(shapes: Mapping[str, TensorEntry], pattern: str) -> int:
    found = {int(match[1]) for name in shapes if (match := re.search(pattern, name))}
    return len(found) if found == set(range(len(found))) else 0


def _stage(shapes: Mapping[str, TensorEntry], index: int) -> tuple[int, int]:
    """Return width and depth of a stage, 0 where its blocks are missing."""
    stage = f"{TARGET}encoder.stages.{index}."
    first = shapes.get(f"{stage}layers.0.dwconv.weight")
    return (first.shape[0] if first else 0), _count(shapes, rf"stages\.{index}\.layers\.(\d+)\.")
