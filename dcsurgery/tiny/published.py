"""A tiny original LLaVA as its authors' code saves it, its tower in a folder beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from dcsurgery.tiny.original_llava import OriginalSizes, Tower, write_original_llava, write_tower
from dcsurgery.tiny.tokenizer import write_tokenizer

BESIDE = "towers"


def write_tiny_published(
    folder: Path, *, tower: Tower = "siglip", connector: str | None = "dci", anyres: bool = False
) -> Path:
    """Write an original LLaVA with tokenizer and a tower of full depth; return `folder`.

    `connector` is one that its authors trained into it, None for none; `anyres` cuts tiles.
    """
    sizes = OriginalSizes(tower=tower, depth=27 if tower == "siglip" else 24, image=28, patch=7)
    beside = folder.parent / BESIDE
    shutil.rmtree(beside, ignore_errors=True)
    write_tower(beside / tower, sizes)
    side = sizes.image
    tiles = {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
    }
    write_original_llava(
        folder,
        sizes,
        f"../{BESIDE}/{tower}",
        connector=connector,
        config=tiles if anyres else None,
    )
    write_tokenizer(folder, ())
    return folder
