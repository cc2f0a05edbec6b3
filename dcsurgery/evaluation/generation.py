"""A loaded model's answers and losses on rows, in batches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dcsurgery.data.batches import Collator
from dcsurgery.data.processor import FOREIGN_ERRORS
from dcsurgery.data.prompts import IGNORED, TOKEN_FIELDS, Prompter
from dcsurgery.errors import RequestError

# Greedy, whatever generation_config.json samples with; None also silences its warning.
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


def place_model(model: Any, name: str, device: str | None) -> Any:
    """Return the model on a device; None takes a GPU if there is one.

    Raises RequestError for a device that torch does not know, or that is full.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"{name} cannot be put on {chosen}: {' '.join(str(error).split())[:120]}",
            hint="choose another --device, or a smaller --dtype",
        ) from None


def model_inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the model's forward pass takes of a batch, on its device and in its dtype."""
    known = inspect.signature(model.forward).parameters
    dtype, device = model.dtype, model.device
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
        if name in known
    }


@contextmanager
def running(model: Any, name: str | None = None) -> Iterator[None]:
    """Turn what a model raises over its inputs into a RequestError about the model, by `name`."""
    try:
        yield
    except RequestError:
        raise
    except FOREIGN_ERRORS as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise RequestError(
            f"{name or getattr(model, 'name_or_path', '') or 'the model'} cannot answer: {why}",
            hint="`dcsurgery verify` and `inspect` say whether model and processor fit together",
        ) from error


def generate_answers(
    model: Any, prompter: Prompter, prompts: Sequence[Mapping[str, Tensor]], max_new_tokens: int
) -> list[str]:
    """Return the greedy answers to prompts as Prompter.prompt makes them, as one batch.

    Shorter prompts are padded on the left, so that every answer starts at the same place and
    equals the one that the prompt alone would get.
    """
    rows = [
        {name: value[0] if name in TOKEN_FIELDS else value for name, value in prompt.items()}
        for prompt in prompts
    ]
    collator = Collator(prompter.processor, side="left")
    batch = model_inputs(model, collator(rows))
    with torch.inference_mode(), running(model):
        found = model.generate(
            **batch,
            **GREEDY,
            max_new_tokens=max_new_tokens,
            pad_token_id=collator.padding["input_ids"],
        )
    start = batch["input_ids"].shape[1]
    return [prompter.answer(row[start:]) for row in found]


def answer_losses(
    model: Any, prompter: Prompter, rows: Sequence[Mapping[str, Tensor]]
) -> list[tuple[float, int]]:
    """Return per encoded row the mean loss over its supervised tokens, and their number."""
    batch = Collator(prompter.processor)(rows)
    labels = batch["labels"].to(model.device)[:, 1:]
    inputs = model_inputs(model, batch)
    if not prompter.suffixed:
        inputs.pop("labels", None)
    with torch.inference_mode(), running(model):
        logits = model(**inputs).logits[:, :-1]
    found = []
    for row, marks in zip(logits, labels, strict=True):
        kept = marks != IGNORED
        loss = torch.nn.functional.cross_entropy(row[kept].float(), marks[kept])
        found.append((float(loss), int(kept.sum())))
    return found
