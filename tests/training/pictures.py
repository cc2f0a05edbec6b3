"""Rows and pictures for tests of training and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dcsurgery.data.conversations import Row, Turn
from dcsurgery.data.pictures import ImageSource


def picture(width: int = 64, height: int = 32, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save_picture(path: Path, width: int = 64, height: int = 32, seed: int = 0) -> Path:
    picture(width, height, seed).save(path)
    return path


def source(width: int = 64, height: int = 32) -> ImageSource:
    return ImageSource("drawn", picture=picture(width, height))


def user(*parts: str | None) -> Turn:
    return Turn("user", parts)


def answer(text: str) -> Turn:
    return Turn("assistant", (text,))


# One picture and two turns; two pictures of other shapes; text alone.
ONE = Row(
    "one",
    (user(None, "what is it?"), answer("a red ball"), user("why?"), answer("because")),
    (source(),),
)
TWO = Row("two", (user(None, None, "which?"), answer("the left")), (source(), source(20, 40)))
TEXT = Row("text", (user("hi"), answer("hello")))
