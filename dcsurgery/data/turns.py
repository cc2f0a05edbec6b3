"""Lists of turns as people write them, and the pictures that texts show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dcsurgery.data.conversations import PLACEHOLDER, ROLES, Turn, split_text
from dcsurgery.data.fields import as_list, kind_of, missing
from dcsurgery.data.picture_keys import Found, picture_names
from dcsurgery.data.pictures import RowError

# <image 1> (MMMU), <image_00> (MiniCPM-V), <|image_1|> (Phi), <img>path</img> (Qwen-VL).
MENTION = re.compile(
    r"<\|?image[ _]?(\d+)\|?>|<img>(.*?)</img>|<image_placeholder>|<ImageHere>|<\|image\|>|<image>",
    re.DOTALL,
)
ROLE_KEYS, TEXT_KEYS = ("from", "role"), ("value", "content", "text")
PICTURE_PARTS = ("image", "image_url", "input_image")
TEXT_PARTS = ("text", "input_text", "output_text")
# Keys of a turn that no reader follows: what would be trained is not what they say.
CALLS = ("tool_calls", "function_call", "reasoning_content")
TRAINED = ("loss", "weight", "train")  # ms-swift, OpenAI, Axolotl
# Where a part of a message has its picture. Anthropic's has an object under source.
VALUES = ("image", "image_url", "path", "url", "base64", "source", "bytes", "data")


@dataclass(frozen=True)
class Shown:
    """One picture that a text shows: by its `place` in the row, by its `name`, or `value` itself.

    None of them is the row's next picture.
    """

    place: int | None = None
    name: str | None = None
    value: Any = None

    @property
    def number(self) -> int:
        """The number in its name; -1 without one."""
        found = re.search(r"\d+", self.name or "")
        return int(found[0]) if found else -1


@dataclass
class Reader:
    """Reads turns; `shown` are the pictures in the order in which the texts show them.

    `strict` after LLaVA's own form, where a picture that no text shows is a fault of the data.
    """

    shown: list[Shown] = field(default_factory=list)
    strict: bool = False

    def text(self, text: str) -> tuple[str | None, ...]:
        """Return the parts of a text, None for each picture that it shows."""

        def note(match: re.Match[str]) -> str:
            number, path = match[1], (match[2] or "").strip()
            self.shown.append(Shown(name=match[0]) if number else Shown(value=path or None))
            return PLACEHOLDER

        return split_text(MENTION.sub(note, text))

    def turns(self, raw: Any) -> list[Turn]:
        """Return the turns of a list: {"from", "value"}, {"role", "content"}, or pairs by role."""
        items = as_list(raw)
        if not items or (not isinstance(raw, list | tuple | Mapping) and items == [raw]):
            raise RowError(f"its conversation is {kind_of(raw)}, not a list of turns")
        return [turn for item in items for turn in self._turn(item)]

    def _turn(self, raw: Any) -> list[Turn]:
        if not isinstance(raw, Mapping):
            raise RowError(f"a turn is {kind_of(raw)}, not an object")
        _check_keys(raw)
        role_key = next((key for key in ROLE_KEYS if raw.get(key) is not None), None)
        if role_key is None:  # {"human": ..., "assistant": ...}
            said = [(key, raw[key]) for key in ROLES if raw.get(key) is not None]
            if said:
                return [Turn(ROLES[key], self._content(text, key)) for key, text in said]
            raise RowError(f"a turn has no role; its keys are {', '.join(map(str, raw))}")
        self.strict |= role_key == "from"
        role = ROLES.get(str(raw[role_key]).lower())
        if role is None:
            known = ", ".join(ROLES)
            raise RowError(
                f"a turn's {role_key!r} is {str(raw[role_key])[:40]!r}; known are {known}"
            )
        text_key = next((key for key in TEXT_KEYS if raw.get(key) is not None), TEXT_KEYS[0])
        return [Turn(role, self._content(raw.get(text_key), text_key))]

    def _content(self, content: Any, key: str) -> tuple[str | None, ...]:
        if isinstance(content, str):
            return self.text(content)
        if isinstance(content, list | tuple):
            # Beside a part that is a picture, a text that writes <image> only speaks of one.
            plain = any(map(_is_picture, content))
            return tuple(part for item in content for part in self._part(item, plain))
        raise RowError(f"a turn's {key!r} is {kind_of(content)}, not text")

    def _part(self, item: Any, plain: bool) -> tuple[str | None, ...]:
        """Return the texts of a part; None, noted, for a picture."""
        text = item
        if isinstance(item, Mapping):
            if _is_picture(item):
                value = next((item[key] for key in VALUES if not missing(item.get(key))), None)
                place = item.get("index") if value is None else None
                self.shown.append(Shown(place if isinstance(place, int) else None, value=value))
                return (None,)
            text = item.get("text") if item.get("type") in (*TEXT_PARTS, None) else None
        if not isinstance(text, str):
            kind = item.get("type") if isinstance(item, Mapping) else kind_of(item)
            raise RowError(f"a turn holds {str(kind)[:40]!r}; known are text, image and image_url")
        return (text,) if plain else self.text(text)

    def resolve(self, found: Found) -> list[Any]:
        """Return a picture of the row for everything that is shown; all of them where nothing is.

        Raises RowError where the numbers differ, or for a mention of a picture that is not there.
        """
        values, shown = found.values, self.shown
        own = [each.value for each in shown if each.value is not None]
        if not shown or (len(own) == len(shown) and len(values) in (0, len(own))):
            return values or own
        following = iter(range(len(values)))
        zero = any(each.number == 0 for each in shown)
        places = [_place(each, found, following, zero) for each in shown]
        pointed = {place for place in places if place is not None}
        mentions = found.numbered and all(each.name for each in shown)
        if -1 in pointed or not (mentions or len(pointed) == len(values)):
            raise RowError(f"its text shows {len(shown)} images, but it has {len(values)}")
        return [
            each.value if place is None else values[place]
            for each, place in zip(shown, places, strict=True)
        ]


def _place(shown: Shown, found: Found, following: Iterator[int], zero: bool) -> int | None:
    """Return the place in the row of a picture that is shown; None for one that comes along."""
    if shown.value is not None:
        return None
    if shown.name is None and shown.place is None:
        return next(following, -1)
    place = shown.place
    if shown.name is not None:
        first = {} if found.places else {str(shown.number): shown.number - (not zero)}
        places = found.places or first
        place = places.get(shown.name, places.get(str(shown.number)))
    if place is None or not 0 <= place < len(found.values):
        mention = shown.name or f"picture {place}"
        raise RowError(f"its text shows {mention}, but it has {len(found.values)} images")
    return place


def _check_keys(turn: Mapping[str, Any]) -> None:
    """Raise RowError for a key of a turn that changes what it means."""
    for key in TRAINED:
        if turn.get(key) is not None and not turn[key]:
            raise RowError(f"a turn's {key!r} {json.dumps(turn[key])} is not followed")
    others = ((key, turn[key]) for key in turn if key not in (*ROLES, *ROLE_KEYS, *TEXT_KEYS))
    for key, value in others:
        if not missing(value) and (key in CALLS or any(picture_names(key, value))):
            raise RowError(f"a turn's {key!r} is not read")


def _is_picture(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    written = kind is None and any(part.get(key) is not None for key in PICTURE_PARTS)
    return written or kind in PICTURE_PARTS
