"""Rows and questions as a model's inputs, through its own processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from dcsurgery.data.chat_template import Script
from dcsurgery.data.conversations import Row, Turn, ask, check_roles, for_training
from dcsurgery.data.pictures import ImageSource, Orientation, RowError
from dcsurgery.data.processor import FOREIGN_ERRORS, RENAMED
from dcsurgery.data.templates import Version, find_writer, image_token
from dcsurgery.errors import RequestError

IGNORED = -100
# One entry per token: [T, ...]. Everything else belongs to the pictures.
TOKEN_FIELDS = (
    "input_ids", "labels", "attention_mask", "token_type_ids", "mm_token_type_ids",
    "cross_attention_mask",
)  # fmt: skip
# Noncharacters: no text that is exchanged may hold them (Unicode 23.7).
OPEN, CLOSE = "\ufdd0", "\ufdd1"
# In no vocabulary: an ideograph and a symbol.
STRANGE = "\u9f98 \U0001fae0"
Aspect = Literal["processor", "pad"]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Encoded:
    """One row as tensors.

    `values` holds token fields [T, ...] (labels are -100 outside answers) and the pictures' inputs
    as the processor shapes them for one conversation. `spans` are the answers' tokens [start, end).
    `truncated`: it was longer than allowed; `ended` is False where an answer lost its end to that.
    `dropped` names what of the row is not in the prompt, or carries no loss.
    """

    values: dict[str, Tensor]
    spans: tuple[tuple[int, int], ...] = ()
    truncated: bool = False
    ended: bool = True
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values["input_ids"])


class Prompter:
    """Encodes rows for training and questions for generation.

    `version` asks for LLaVA's plain or v1 prompts; None means the model's chat template, v1 where
    it has none. `aspect` "pad" pads pictures to squares of the processor's mean colour first, as
    LLaVA's second stage does (image_aspect_ratio pad). `orientation` says how rows' pictures are
    turned. `suffixed` says that the model sees a prompt both ways and must be told its labels to
    see an answer one way (PaliGemma).
    """

    def __init__(
        self,
        processor: Any,
        *,
        version: Version | None = None,
        aspect: Aspect = "processor",
        orientation: Orientation = "exif",
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.aspect = aspect
        self.orientation = orientation
        self._write = find_writer(processor, version)
        self.suffixed = _takes_suffix(processor)

    def encode(self, row: Row, max_length: int | None = None) -> Encoded:
        """Return a row with labels for its answers only, each with its end of turn.

        A row of more than `max_length` tokens loses the end of its last answer, or whole turns from
        the end, never a picture. Raises RowError for a row that cannot be trained on.
        """
        dropped = self.dropped(row.turns, generate=False)
        row = for_training(row)
        pictures = [self._shaped(picture) for picture in self.open(row.images)]
        if self.suffixed:
            values, spans = self._encode_suffix(row, pictures)
        else:
            values, spans = self._tokenize(self._write(row.turns, False), pictures)
            values = _labelled(values, spans)
        return _cut(Encoded(values, spans, dropped=dropped), row, max_length)

    def prompt(self, turns: Sequence[Turn], images: Sequence[Any] = ()) -> dict[str, Tensor]:
        """Return inputs for generating the next answer: token fields [1, T] and the pictures'.

        `turns` end with the user's; `images` are PIL images, as many as the turns show. Raises
        RowError where they cannot be put to this model.
        """
        check_roles(turns)
        if not turns or turns[-1].role != "user":
            raise RowError("it does not end with a question")
        pictures = [self._shaped(image) for image in images]
        if self.suffixed:
            text = _prefix(turns, image_token(self.processor))
            values = dict(self._call(text, pictures))
        else:
            script = self._write(turns, True)
            values = self._unended(self._tokenize(script, pictures)[0], script.text)
        values.pop("labels", None)
        return {
            name: value[None] if name in TOKEN_FIELDS else value for name, value in values.items()
        }

    def written(self, turns: Sequence[Turn]) -> str:
        """Return the prompt for the next answer as text, with one image token a picture."""
        if self.suffixed:
            return _prefix(turns, image_token(self.processor))
        return self._write(turns, True).text

    def dropped(self, turns: Sequence[Turn], *, generate: bool = True) -> tuple[str, ...]:
        """Return what the prompt for the next answer, or the text to train on, lacks of turns.

        Raises RowError where they cannot be put to this model.
        """
        outside = () if generate else _outside(turns)
        used = turns if generate else for_training(Row("", tuple(turns))).turns
        found = (*outside, *self._misread(" ".join(turn.text for turn in used)))
        if not self.suffixed:
            return (*found, *self._write(used, generate).dropped)
        earlier = any(turn.role == "assistant" for turn in used[:-1])
        return (*found, *(("loss of earlier answers",) if earlier and not generate else ()))

    def _misread(self, text: str) -> Iterator[str]:
        """Name what the tokenizer makes of a text that its letters do not say."""
        if any(mark in text for mark in self._marks):
            yield "text of a special token"
        unknown = self._forgets
        if unknown is not None and unknown in self.tokenizer(text)["input_ids"]:
            yield "word that the tokenizer does not know"

    @cached_property
    def _forgets(self) -> int | None:
        """The token for all unknown words; None where a tokenizer writes every word."""
        unknown = self.tokenizer.unk_token_id
        return unknown if unknown in self.tokenizer(STRANGE)["input_ids"] else None

    @cached_property
    def _marks(self) -> list[str]:
        """The special tokens that begin, part and end turns; those for boxes are meant."""
        tokenizer = self.tokenizer
        names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        written = ""
        with suppress(RowError):
            written = self._write((ask("?", 1), Turn("assistant", ("!",))), False).text
        special = (str(each) for each in tokenizer.added_tokens_decoder.values() if each.special)
        return [*filter(None, names), *(mark for mark in special if mark in written)]

    def answer(self, tokens: Tensor) -> str:
        """Return generated token ids [T] as text, without special tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def open(self, images: Sequence[ImageSource]) -> list[Any]:
        """Return pictures as `prompt` takes them: RGB PIL images. Raises RowError."""
        return [source.open(self.orientation) for source in images]

    def _shaped(self, image: Any) -> Any:
        return pad_square(image, self.processor) if self.aspect == "pad" else image

    def _tokenize(self, script: Script, pictures: list[Any]) -> tuple[dict[str, Tensor], Spans]:
        if OPEN in script.text or CLOSE in script.text:
            raise RowError("its text holds the noncharacters U+FDD0 or U+FDD1")
        text, done = "", 0
        for start, end in script.answers:
            text += f"{script.text[done:start]}{OPEN}{script.text[start:end]}{CLOSE}"
            done = end
        text += script.text[done:]
        tracker = _Tracker(self.tokenizer)
        self.processor.tokenizer = tracker
        try:
            values = self._call(text, pictures)
        finally:
            self.processor.tokenizer = self.tokenizer
        spans = tracker.spans
        if len(spans) != len(script.answers):
            raise RowError("its answers get no tokens")
        return values, spans

    def _unended(self, values: dict[str, Tensor], text: str) -> dict[str, Tensor]:
        """Return a prompt's inputs without the end token that some tokenizers add to every text."""
        eos = self.tokenizer.eos_token
        added = values["input_ids"][-1] == self.tokenizer.eos_token_id
        if not added or text.rstrip().endswith(eos):
            return values
        return {k: value[:-1] if k in TOKEN_FIELDS else value for k, value in values.items()}

    def _encode_suffix(self, row: Row, pictures: list[Any]) -> tuple[dict[str, Tensor], Spans]:
        """Encode for a processor that takes question and last answer apart (PaliGemma).

        The prefix is seen whole by every token, so that only the last answer can carry loss.
        """
        text = _prefix(row.turns[:-1], image_token(self.processor))
        values = self._call(text, pictures, suffix=[row.turns[-1].text.strip()])
        kept = (values["labels"] != IGNORED).nonzero().flatten()
        if not len(kept):
            raise RowError("its answer gets no tokens")
        return values, ((int(kept[0]), int(kept[-1]) + 1),)

    def _call(self, text: str, pictures: list[Any], **options: Any) -> dict[str, Tensor]:
        bos = self.tokenizer.bos_token
        if bos and text.startswith(bos):
            options["add_special_tokens"] = False  # the chat template wrote it
        try:
            found = self.processor(
                text=[text],
                images=[pictures] if pictures else None,
                return_tensors="pt",
                **options,
            )
        except RequestError:
            raise
        except FOREIGN_ERRORS as error:
            why = " ".join(str(error).split())[:160] or type(error).__name__
            raise RowError(f"the processor refuses it: {why}") from None
        return {
            RENAMED.get(name, name): value[0] if name in TOKEN_FIELDS else value
            for name, value in found.items()
            if isinstance(value, Tensor)
        }


class _Tracker:
    """A tokenizer that finds marked answers in the text it is given, pictures written out already.

    The marks are taken out before the real tokenizer sees the text; what it returns is unchanged.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.spans: tuple[tuple[int, int], ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        if not isinstance(text, list | tuple) or not any(OPEN in str(item) for item in text):
            return self._tokenizer(text, *args, **options)
        clean, characters = _unmarked(str(text[0]))
        options["return_offsets_mapping"] = True
        found = self._tokenizer([clean], *args, **options)
        offsets = found.pop("offset_mapping")[0]
        self.spans = tuple(
            span for each in characters if (span := _covered(offsets, *each)) is not None
        )
        return found


def _unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text without marks, and the characters [start, end) they enclosed."""
    clean, places = "", []
    for index, piece in enumerate(text.split(OPEN)):
        inside, _, outside = piece.partition(CLOSE) if index else ("", "", piece)
        if index:
            places.append((len(clean), len(clean) + len(inside)))
        clean += inside + outside
    return clean, places


def _covered(offsets: Any, start: int, end: int) -> tuple[int, int] | None:
    """Return the tokens [first, last) that lie over the characters [start, end)."""
    over = [index for index, (left, right) in enumerate(offsets) if left < end and right > start]
    return (over[0], over[-1] + 1) if over else None


def _labelled(values: dict[str, Tensor], spans: tuple[tuple[int, int], ...]) -> dict[str, Tensor]:
    labels = torch.full_like(values["input_ids"], IGNORED)
    for start, end in spans:
        labels[start:end] = values["input_ids"][start:end]
    return {**values, "labels": labels}


def _cut(encoded: Encoded, row: Row, max_length: int | None) -> Encoded:
    """Return the row within max_length tokens. Raises RowError when a picture would be cut."""
    length = len(encoded)
    if max_length is None or length <= max_length:
        return encoded
    kept = [span for span in encoded.spans if span[0] < max_length]
    if not kept:
        raise RowError(
            f"it has {length} tokens, and no answer starts in the first {max_length}",
            f"--max-length {length}",
        )
    answers = [index for index, turn in enumerate(row.turns) if turn.role == "assistant"]
    last = answers[len(kept) - 1] if len(encoded.spans) > 1 else len(row.turns)
    if any(turn.pictures for turn in row.turns[last:]):
        raise RowError(
            f"it has {length} tokens, and {max_length} would cut an image", f"--max-length {length}"
        )
    end = min(kept[-1][1], max_length)
    values = {
        name: value[:end] if name in TOKEN_FIELDS else value
        for name, value in encoded.values.items()
    }
    spans = tuple((start, min(stop, end)) for start, stop in kept)
    return replace(encoded, values=values, spans=spans, truncated=True, ended=kept[-1][1] <= end)


def _outside(turns: Sequence[Turn]) -> tuple[str, ...]:
    """Name what is before the first question or after the last answer."""
    talk = [turn.role for turn in turns if turn.role != "system"]
    leading = talk[:1] == ["assistant"]
    trailing = talk[-1:] == ["user"]
    names = ("answer before the first question", "question after the last answer")
    return tuple(name for name, is_so in zip(names, (leading, trailing), strict=True) if is_so)


def _takes_suffix(processor: Any) -> bool:
    """Whether question and answer go in as text and suffix, seen both ways and one way."""
    import inspect

    return "suffix" in inspect.signature(type(processor).__call__).parameters


def _prefix(turns: Sequence[Turn], token: str) -> str:
    pictures = sum(turn.pictures for turn in turns)
    return token * pictures + "\n".join(turn.text.strip() for turn in turns)


def pad_square(image: Any, processor: Any) -> Any:
    """Return a PIL image centred on a square of the processor's mean colour."""
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    mean = getattr(processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
