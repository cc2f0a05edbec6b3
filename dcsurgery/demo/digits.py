"""The embedded handwritten digits: 5000 images of MNIST, split by glyph."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
Bytes = NDArray[np.uint8]

DATA = Path(__file__).parent / "data"
SHEET = DATA / "digits.png"
SIDE = 28
PER_DIGIT = 500
# Of the 500 glyphs of a digit, in file order: no glyph is in two splits.
SPLITS: dict[Split, range] = {
    "train": range(0, 400),
    "val": range(400, 450),
    "test": range(450, 500),
}
CELL = 24
SCALES = (0.55, 0.85)
TILTS = (-30, 0, 30)


@cache
def read_digits() -> Bytes:
    """Return the glyphs [10, 500, 28, 28], 0 paper to 255 ink, digit by digit."""
    from PIL import Image

    with Image.open(SHEET) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    rows, columns = pixels.shape[0] // SIDE, pixels.shape[1] // SIDE
    glyphs = pixels.reshape(rows, SIDE, columns, SIDE).swapaxes(1, 2)
    return glyphs.reshape(10, PER_DIGIT, SIDE, SIDE)


@cache
def read_glyphs(split: Split) -> Bytes:
    """Return a split's glyphs as they are painted: [10, glyphs, scales, tilts, 24, 24] ink."""
    from PIL import Image

    glyphs = read_digits()[:, SPLITS[split].start : SPLITS[split].stop]
    drawn = np.empty((*glyphs.shape[:2], len(SCALES), len(TILTS), CELL, CELL), np.uint8)
    maps = [
        (s, t, _inverse_map(scale, tilt))
        for s, scale in enumerate(SCALES)
        for t, tilt in enumerate(TILTS)
    ]
    for digit, index in np.ndindex(glyphs.shape[:2]):
        image = Image.fromarray(glyphs[digit, index])
        for s, t, inverse in maps:
            done = image.transform(
                (CELL, CELL), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
            )
            drawn[digit, index, s, t] = np.asarray(done)
    return drawn


def _inverse_map(scale: float, tilt: float) -> tuple[Any, ...]:
    """The affine map from a pixel of the cell to one of the glyph; both turn about their centre."""
    angle = np.deg2rad(tilt)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    cell, glyph = (CELL - 1) / 2, (SIDE - 1) / 2
    return (
        cos, sin, glyph - cell * (cos + sin),
        -sin, cos, glyph - cell * (cos - sin),
    )  # fmt: skip
