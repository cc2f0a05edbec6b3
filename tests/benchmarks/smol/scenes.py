"""Scenes of one handwritten digit or one named thing, with questions whose answers are known.

A picture has 112 x 112 pixels: four cells of 56, which are 4 x 4 patches each. One of them holds a
digit in coloured ink or a thing of the emoji set, the others nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcsurgery.demo.digits import Split, read_glyphs
from dcsurgery.demo.scenes import COLOURS, DIGITS, INK

CELL, SIDE = 56, 112
CORNERS = ("top left", "top right", "bottom left", "bottom right")
PAPER = {
    "white": (238, 238, 238), "grey": (128, 128, 128), "black": (22, 22, 22),
    "brown": (110, 75, 45), "pink": (240, 180, 200), "cyan": (150, 225, 235),
}  # fmt: skip
# What a picture is called, and its file in emoji-datasource-google 16.0.0, img/google/64.
THINGS = {
    "cat": "1f431", "dog": "1f436", "horse": "1f434", "cow": "1f42e", "pig": "1f437",
    "rabbit": "1f430", "bear": "1f43b", "fish": "1f41f", "bird": "1f426", "snake": "1f40d",
    "tree": "1f332", "flower": "1f337", "apple": "1f34e", "banana": "1f34c", "lemon": "1f34b",
    "grapes": "1f347", "pizza": "1f355", "cake": "1f370", "bread": "1f35e", "egg": "1f95a",
    "cup": "2615", "car": "1f697", "bus": "1f68c", "train": "1f68b", "ship": "1f6a2",
    "plane": "2708-fe0f", "bicycle": "1f6b2", "house": "1f3e0", "tent": "26fa", "clock": "23f0",
    "key": "1f511", "book": "1f4d6", "phone": "1f4f1", "camera": "1f4f7", "guitar": "1f3b8",
    "drum": "1f941", "ball": "26bd", "shoe": "1f45f", "hat": "1f3a9", "umbrella": "2602-fe0f",
}  # fmt: skip
SIZES = ("small", "large")
DIGITS_SHARE = 0.6


@dataclass(frozen=True)
class Question:
    """What is asked about a scene, the answer, and the kind of question."""

    kind: str
    text: str
    answer: str


# How opaque an object is, its colours, and what is asked about it.
Drawn = tuple[NDArray[np.uint8], NDArray[Any], tuple[Question, ...]]


@dataclass(frozen=True)
class Scene:
    """A picture and every question about it, one of each kind."""

    picture: Image.Image
    questions: tuple[Question, ...]


def draw_scene(generator: np.random.Generator, emoji: Path, split: Split) -> Scene:
    """Return a scene; a digit's glyph is of `split`, `emoji` holds the files of THINGS."""
    corner = int(generator.integers(4))
    ground = list(PAPER)[generator.integers(len(PAPER))]
    pixels = np.empty((SIDE, SIDE, 3), np.float32)
    pixels[:] = np.array(PAPER[ground], np.float32) + generator.normal(0, 8, 3)
    questions = [
        Question("background", "What colour is the background?", ground),
        Question("where", "Where is it?", CORNERS[corner]),
    ]
    draw = _draw_digit if generator.random() < DIGITS_SHARE else _draw_thing
    alpha, ink, asked = draw(generator, emoji, split)
    _lay(pixels, corner, alpha, ink, generator)
    pixels += generator.normal(0, 5, pixels.shape)
    picture = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    return Scene(picture, (*questions, *asked))


def _draw_digit(generator: np.random.Generator, _: Path, split: Split) -> Drawn:
    digit, colour, size, tilt = (int(generator.integers(n)) for n in (10, len(INK), 2, 3))
    glyphs = read_glyphs(split)[digit]
    ink = glyphs[generator.integers(len(glyphs)), size, tilt]
    alpha = Image.fromarray(ink).resize((48, 48), Image.Resampling.BICUBIC)
    asked = (
        Question("colour", "What colour is the digit?", COLOURS[colour]),
        Question("digit", "Which digit is it?", DIGITS[digit]),
        Question("size", "Is the digit small or large?", SIZES[size]),
    )
    return np.asarray(alpha), INK[colour] + generator.normal(0, 12, 3), asked


def _draw_thing(generator: np.random.Generator, emoji: Path, _: Split) -> Drawn:
    name = list(THINGS)[generator.integers(len(THINGS))]
    drawn = _thing(emoji / f"{THINGS[name]}.png", int(generator.integers(36, 53)))
    return drawn[..., 3], drawn[..., :3], (Question("thing", "What is it?", name),)


@cache
def _thing(path: Path, side: int) -> NDArray[np.uint8]:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGBA").resize((side, side), Image.Resampling.BICUBIC))


def _lay(
    pixels: NDArray[np.float32],
    corner: int,
    alpha: NDArray[np.uint8],
    ink: Any,
    generator: np.random.Generator,
) -> None:
    side = len(alpha)
    room = CELL - side
    top, left = (int(generator.integers(room + 1)) for _ in range(2))
    top, left = top + CELL * (corner // 2), left + CELL * (corner % 2)
    cell = pixels[top : top + side, left : left + side]
    cell += alpha[..., None].astype(np.float32) / 255 * (ink - cell)


def write_rows(file: Path, emoji: Path, *, seed: int, number: int, split: Split, ask: int) -> None:
    """Write `number` pictures into a folder beside `file`, and their rows into it.

    With `ask` a row is a conversation of so many kinds of questions, drawn for each picture; with 0
    every kind is a row of its own, as `eval` counts them.
    """
    generator = np.random.default_rng(seed)
    folder, name = file.parent, file.stem
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for at in range(number):
        scene = draw_scene(generator, emoji, split)
        image = f"{name}/{at:05}.png"
        scene.picture.save(folder / image)
        if not ask:
            rows += [
                {
                    "id": f"{at}-{item.kind}", "image": image, "type": item.kind,
                    "question": item.text, "answer": item.answer,
                }
                for item in scene.questions
            ]  # fmt: skip
            continue
        turns: list[dict[str, str]] = []
        for item in generator.permutation(len(scene.questions))[:ask]:
            question = scene.questions[item]
            turns += [
                {"from": "human", "value": question.text},
                {"from": "gpt", "value": question.answer},
            ]
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
        rows.append({"id": str(at), "image": image, "conversations": turns})
    file.write_text(json.dumps(rows, indent=0), encoding="utf-8")
