"""Scenes: one to three coloured handwritten digits in the four corners of a small picture."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dcsurgery.demo.digits import CELL, Bytes, Split, read_glyphs

Ints = NDArray[np.int64]

IMAGE_SIZE = 2 * CELL
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
BACKGROUNDS = ("black", "grey", "white", "brown")
SIZES = ("small", "large")
TILTS = ("left", "straight", "right")
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
MAX_DIGITS = 3

INK = np.array(
    [
        (220, 45, 45), (45, 175, 70), (55, 95, 225),
        (230, 210, 50), (165, 70, 200), (240, 140, 40),
    ],
    dtype=np.float32,
)  # fmt: skip
_PAPER = np.array([(25, 25, 25), (120, 120, 120), (235, 235, 235), (100, 70, 45)], dtype=np.float32)
# Standard deviations, in steps of 255: of an object's colour, of the paper's, of every pixel.
_INK_NOISE, _PAPER_NOISE, _PIXEL_NOISE = 14.0, 10.0, 8.0
_SHIFT = 1


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, as indices into the tuples above.

    `count` and `background` are [B]; the others [B, 4], one per corner, -1 where it is empty.
    """

    count: Ints
    background: Ints
    digit: Ints
    colour: Ints
    size: Ints
    tilt: Ints

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: Ints) -> Scenes:
        """Return some of the scenes, in that order."""
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw_scenes(generator: np.random.Generator, number: int) -> Scenes:
    """Return random scenes; no digit and no colour occurs twice in one."""
    count = generator.integers(1, MAX_DIGITS + 1, number)
    # Ranks of random numbers: a random subset without a loop over scenes.
    taken = generator.random((number, 4)).argsort(axis=1).argsort(axis=1) < count[:, None]

    def pick(choices: int, *, distinct: bool) -> Ints:
        if distinct:
            values = generator.random((number, choices)).argsort(axis=1)[:, :4]
        else:
            values = generator.integers(0, choices, (number, 4))
        return np.where(taken, values, -1)

    return Scenes(
        count=count,
        background=generator.integers(0, len(BACKGROUNDS), number),
        digit=pick(len(DIGITS), distinct=True),
        colour=pick(len(COLOURS), distinct=True),
        size=pick(len(SIZES), distinct=False),
        tilt=pick(len(TILTS), distinct=False),
    )


def paint(generator: np.random.Generator, scenes: Scenes, split: Split) -> Bytes:
    """Return pictures [B, 48, 48, 3] of scenes, with glyphs of that split alone."""
    glyphs = read_glyphs(split)
    number = len(scenes)
    chosen = generator.integers(0, glyphs.shape[1], (number, 4))
    shift = generator.integers(-_SHIFT, _SHIFT + 1, (2, number, 4, 1))
    paper = _PAPER[scenes.background] + _noise(generator, (number, 3), _PAPER_NOISE)
    ink = INK[scenes.colour] + _noise(generator, (number, 4, 3), _INK_NOISE)
    rows, columns = (np.arange(CELL) + shift) % CELL
    alpha = glyphs[
        scenes.digit[..., None, None],
        chosen[..., None, None],
        scenes.size[..., None, None],
        scenes.tilt[..., None, None],
        rows[..., :, None],
        columns[..., None, :],
    ].astype(np.float32) / 255  # fmt: skip
    alpha[scenes.digit < 0] = 0
    cells = paper[:, None, None, None] + alpha[..., None] * (ink - paper[:, None])[:, :, None, None]
    pictures = cells.reshape(number, 2, 2, CELL, CELL, 3).swapaxes(2, 3)
    pictures = pictures.reshape(number, IMAGE_SIZE, IMAGE_SIZE, 3)
    pictures += _noise(generator, pictures.shape, _PIXEL_NOISE)
    painted: Bytes = pictures.clip(0, 255).round().astype(np.uint8)
    return painted


def _noise(
    generator: np.random.Generator, shape: tuple[int, ...], deviation: float
) -> NDArray[np.float32]:
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
