"""Whether a base's processor writes as many image tokens as its model makes, from files alone.

Processors of the LLaVA families count by words of processor_config.json. Repositories from before
transformers 4.46 lack them, and the count is then wrong or fails; config.json decides each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Counting
from dcsurgery.checkpoint.checks import decode, parse_object
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import MalformedCheckpointError

PROCESSOR_FILE, IMAGES_FILE = "processor_config.json", "preprocessor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class ProcessorFit:
    """`written` image tokens stand in a prompt for a picture (a tile), the model `made` them.

    `written` is None where the processor cannot count. `words` are the keys of
    processor_config.json that make both equal, `problems` what they cannot repair.
    """

    written: int | None
    made: int
    words: Config
    problems: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a plan says about it."""
        if not self.words:
            return self.problems
        state = (
            "cannot count image tokens"
            if self.written is None
            else (f"writes {self.written} image tokens for a picture")
        )
        return (
            f"the base's processor {state}, the model makes {self.made}: config.json decides "
            f"{', '.join(self.words)} of {PROCESSOR_FILE}",
            *self.problems,
        )  # fmt: skip


def fit_processor(
    checkpoint: Checkpoint, architecture: Architecture, anatomy: Anatomy
) -> ProcessorFit | None:
    """Compare a base's processor with its anatomy; None where its files cannot tell.

    A file that cannot be read is one of its problems.
    """
    if architecture.counting is None or not _has_processor(checkpoint):
        return None
    try:
        return _fit(checkpoint, architecture.counting(anatomy), anatomy)
    except MalformedCheckpointError as error:
        return ProcessorFit(None, anatomy.image_tokens, {}, (error.message,))


def _fit(checkpoint: Checkpoint, counting: Counting, anatomy: Anatomy) -> ProcessorFit:
    stated = {k: v for k, v in read_object(checkpoint, PROCESSOR_FILE).items() if v is not None}

    def count(words: Mapping[str, Any]) -> int | None:
        try:
            return counting.count({**counting.defaults, **words})
        except (ArithmeticError, LookupError, TypeError):
            return None

    made = anatomy.image_tokens
    if counting.of_images:
        images = _image_processor(checkpoint)
        written, problems = count(images), _picture_problems(checkpoint, anatomy)
        if written != made:
            told = ", ".join(f"{key} is {images.get(key)}" for key in counting.words)
            told = f"the image processor's {told}, the model makes {made} image tokens"
            problems = (f"{told}; {IMAGES_FILE} is left as it is", *problems)
        return ProcessorFit(written, made, {}, problems)
    written = count(stated)
    lacking = {key: value for key, value in counting.words.items() if key not in stated}
    # First what is missing; words that say something else only where the count stays wrong.
    ways: tuple[Config, ...] = ({}, lacking, counting.words)
    words = next((way for way in ways if count({**stated, **way}) == made), None)
    problems = _picture_problems(checkpoint, anatomy)
    if words is None:
        problems = (f"no setting in {PROCESSOR_FILE} makes its processor write {made}", *problems)
    changed = {k: v for k, v in (words or {}).items() if stated.get(k) != v}
    if changed and PROCESSOR_FILE not in checkpoint.side_files:
        changed = {"processor_class": _class_name(checkpoint) or counting.class_name, **changed}
    return ProcessorFit(written, made, changed, problems)


def template_notes(checkpoint: Checkpoint) -> list[str]:
    """Return what is to be said about a base's chat template: that it has none for pictures."""
    if not (_has_processor(checkpoint) and TOKENIZER_CONFIG in checkpoint.side_files):
        return []
    if any(name in checkpoint.side_files for name in _TEMPLATES):
        return []
    try:
        names = (PROCESSOR_FILE, TOKENIZER_CONFIG)
        own, found = (read_object(checkpoint, name).get("chat_template") for name in names)
    except MalformedCheckpointError as error:
        return [error.message]
    if own:
        return []
    if not found:
        return ["the base has no chat template: ask, eval and finetune write LLaVA's v1 prompts"]
    if "image" in str(found):
        return []
    return [
        "the base's only chat template is its tokenizer's, which knows no pictures: the image "
        "token is written into its texts"
    ]


def read_object(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Return a JSON side file, {} where there is none. Raises MalformedCheckpointError."""
    if name not in checkpoint.side_files:
        return {}
    return parse_object(decode(checkpoint.read_file(name), name), name)


def _has_processor(checkpoint: Checkpoint) -> bool:
    return PROCESSOR_FILE in checkpoint.side_files or IMAGES_FILE in checkpoint.side_files


def _class_name(checkpoint: Checkpoint) -> str | None:
    names = (IMAGES_FILE, TOKENIZER_CONFIG)
    stated = (read_object(checkpoint, name).get("processor_class") for name in names)
    return next((found for found in stated if isinstance(found, str)), None)


def _image_processor(checkpoint: Checkpoint) -> Config:
    inner = read_object(checkpoint, PROCESSOR_FILE).get("image_processor")
    return inner if isinstance(inner, dict) else read_object(checkpoint, IMAGES_FILE)


def _picture_problems(checkpoint: Checkpoint, anatomy: Anatomy) -> tuple[str, ...]:
    """Say where the image processor makes pictures that the tower cannot take."""
    images = _image_processor(checkpoint)
    if anatomy.variable_resolution or not images:
        return ()
    side = anatomy.tower.image_size
    made = _picture_size(images)
    if made == (side, side) or made is None:
        return ()
    if made == ():
        what = "keeps the shape of pictures: one that is not square does not fit the tower"
    else:
        what = f"makes pictures of {made[0]} x {made[1]}, the tower takes {side} x {side}"
    return (f"the image processor {what}; {IMAGES_FILE} is left as it is",)


def _picture_size(images: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return (height, width) of made pictures, () for no fixed size, None where it is not said."""
    crops = images.get("do_center_crop", "crop_size" in images)
    size = images.get("crop_size" if crops else "size")
    if isinstance(size, int):
        return (size, size) if crops else ()
    if not isinstance(size, dict):
        return None
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    return () if "shortest_edge" in size and not crops else None
