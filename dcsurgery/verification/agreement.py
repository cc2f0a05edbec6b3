"""Whether the processor of an output writes as many image tokens as its model makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcsurgery.architectures import Architecture
from dcsurgery.data.conversations import ask
from dcsurgery.data.pictures import RowError
from dcsurgery.data.processor import FOREIGN_ERRORS, PROCESSOR_FILES, load_processor
from dcsurgery.data.prompts import TOKEN_FIELDS, Prompter
from dcsurgery.errors import RequestError
from dcsurgery.loading.adopted_models import small_files
from dcsurgery.verification.inputs import NO_TORCHVISION, Inputs
from dcsurgery.verification.models import image_features
from dcsurgery.verification.pair import Pair
from dcsurgery.verification.report import Check

NAME = "processor and model agree on image tokens"
LIMIT = "as many as the model makes"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def agreement_check(
    pair: Pair, model: Any, architecture: Architecture, picture: Any, prepared: Inputs
) -> Check:
    """Ask about a PIL image as a user would, and count on both sides.

    `model` is the output's, without its language model; `prepared` says whether the base's image
    processor could be loaded here at all. Families whose language model looks at pictures by
    cross-attention have no image tokens to count.
    """
    if architecture.prompt is not None:
        return Check(NAME, True, "pictures do not become tokens in this family", LIMIT)
    with _processor_folder(pair) as folder:
        lacking = _lacking(folder)
        if lacking:
            return Check(NAME, True, f"not compared: there is no {lacking}", LIMIT)
        try:
            prompter = Prompter(load_processor(folder))
        except RequestError as error:
            lacks = "torchvision" in error.message or prepared.note == NO_TORCHVISION
            if lacks and find_spec("torchvision") is None:
                return Check(NAME, True, "not compared: torchvision is not installed", LIMIT)
            return Check(NAME, False, "it cannot be loaded", LIMIT, error.message)
    try:
        inputs = prompter.prompt([ask("What is this?", 1)], [picture])
    except (RowError, RequestError) as error:
        return Check(NAME, False, "it cannot write a prompt", LIMIT, error.message)
    token = getattr(model.config, "image_token_id", None)
    token = getattr(model.config, "image_token_index", None) if token is None else token
    written = inputs["input_ids"].flatten().tolist().count(token)
    seen = {name: value for name, value in inputs.items() if name not in TOKEN_FIELDS}
    try:
        made = len(image_features(model, architecture, seen))
    except FOREIGN_ERRORS as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        return Check(NAME, False, "the model refuses its pictures", LIMIT, why)
    measured = f"{written} written, {made} made"
    return Check(NAME, written == made, measured, LIMIT)


@contextmanager
def _processor_folder(pair: Pair) -> Iterator[Path]:
    """Yield the folder whose processor users of the output get: its own, else the base's."""
    if pair.stock is not None or any((pair.folder / name).is_file() for name in PROCESSOR_FILES):
        yield pair.folder
    else:
        with small_files(pair.base) as folder:
            yield folder


def _lacking(folder: Path) -> str:
    """Return what a folder lacks to have a processor at all; "" when nothing."""
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return "processor"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return "tokenizer"
    return ""
