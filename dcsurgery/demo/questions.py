"""Questions about scenes: ten types, every answer one word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dcsurgery.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    DIGITS,
    SIZES,
    TILTS,
    Scenes,
)


@dataclass(frozen=True)
class Question:
    """One question about scene number `scene` of a batch."""

    scene: int
    kind: str
    text: str
    answer: str


Ask = Callable[[np.random.Generator, Scenes, int], tuple[str, str]]


def _corner(generator: np.random.Generator, scenes: Scenes, scene: int) -> int:
    """A corner that is not empty, at random."""
    return int(generator.choice(np.flatnonzero(scenes.digit[scene] >= 0)))


def _colour_of(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    at = _corner(generator, scenes, scene)
    name = DIGITS[scenes.digit[scene, at]]
    return f"what colour is the {name}?", COLOURS[scenes.colour[scene, at]]


def _colour_at(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    at = _corner(generator, scenes, scene)
    return f"what colour is the digit {CORNERS[at]}?", COLOURS[scenes.colour[scene, at]]


def _background(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    return "what is the background?", BACKGROUNDS[scenes.background[scene]]


def _digit_of(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    at = _corner(generator, scenes, scene)
    colour = COLOURS[scenes.colour[scene, at]]
    return f"which digit is {colour}?", DIGITS[scenes.digit[scene, at]]


def _digit_at(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    at = _corner(generator, scenes, scene)
    return f"which digit is {CORNERS[at]}?", DIGITS[scenes.digit[scene, at]]


def _size_of(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    at = _corner(generator, scenes, scene)
    name = DIGITS[scenes.digit[scene, at]]
    return f"how large is the {name}?", SIZES[scenes.size[scene, at]]


def _tilt_of(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    at = _corner(generator, scenes, scene)
    name = DIGITS[scenes.digit[scene, at]]
    return f"how does the {name} lean?", TILTS[scenes.tilt[scene, at]]


def _where(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    at = _corner(generator, scenes, scene)
    return f"where is the {DIGITS[scenes.digit[scene, at]]}?", CORNERS[at]


def _count(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    return "how many digits are there?", DIGITS[scenes.count[scene]]


def _exists(generator: np.random.Generator, scenes: Scenes, scene: int) -> tuple[str, str]:
    there = bool(generator.integers(2))
    has = np.isin(np.arange(len(DIGITS)), scenes.digit[scene])
    digit = int(generator.choice(np.flatnonzero(has == there)))
    return f"is there any {DIGITS[digit]}?", "yes" if there else "no"


KINDS: dict[str, Ask] = {
    "colour of a digit": _colour_of,
    "colour in a corner": _colour_at,
    "background": _background,
    "digit of a colour": _digit_of,
    "digit in a corner": _digit_at,
    "size": _size_of,
    "lean": _tilt_of,
    "where": _where,
    "count": _count,
    "exists": _exists,
}
# What the eye sees before it knows what it sees; the other kinds need the digit's name.
LOW_LEVEL = ("colour of a digit", "colour in a corner", "background", "size", "lean")

_PLAIN = (
    "what colour is the digit background which how large does lean where many digits are there any "
    "? yes no"
)
WORDS = tuple(
    dict.fromkeys((*_PLAIN.split(), *DIGITS, *COLOURS, *BACKGROUNDS, *SIZES, *TILTS, *CORNERS))
)


def ask(
    generator: np.random.Generator, scenes: Scenes, kinds: Sequence[str], each: int = 1
) -> list[Question]:
    """Return questions, `each` about every scene in a row, of the given kinds."""
    asked = []
    for row, kind in enumerate(kinds):
        text, answer = KINDS[kind](generator, scenes, row // each)
        asked.append(Question(row // each, kind, text, answer))
    return asked


def any_kinds(generator: np.random.Generator, number: int) -> list[str]:
    """Return the names of `number` random kinds."""
    names = list(KINDS)
    return [names[i] for i in generator.integers(0, len(names), number)]


def ask_any(generator: np.random.Generator, scenes: Scenes) -> list[Question]:
    """Return one question about every scene, its kind at random."""
    return ask(generator, scenes, any_kinds(generator, len(scenes)))
