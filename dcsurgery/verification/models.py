"""Run the parts of a model that a connector touches."""

from __future__ import annotations

import ctypes
import gc
import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from dcsurgery.architectures import Architecture
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import VerificationError
from dcsurgery.loading.adopted_models import from_checkpoint, load_config
from dcsurgery.loading.load import quiet_transformers
from dcsurgery.loading.parameter_names import needed_tensors, word_parameters

TEXT_TOKENS = 8


def load_vision(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint without its language model's blocks and words, in the file's dtype, in eval
    mode.

    Raises VerificationError when a tensor that is needed is missing or has another shape.
    """
    config = load_config(checkpoint)
    text = config.get_text_config()
    text.num_hidden_layers = 0
    for key in ("layer_types", "cross_attention_layers"):
        if getattr(text, key, None):
            setattr(text, key, [])
    with quiet_transformers():
        model, info = from_checkpoint(
            checkpoint,
            config=config,
            dtype="auto",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            only=lambda empty, source: needed_tensors(empty, source.tensors),
        )
    missing = set(info["missing_keys"])
    if not checkpoint.is_local:
        words = {id(parameter) for parameter in word_parameters(model)}
        missing -= {name for name, found in model.named_parameters() if id(found) in words}
    problems = sorted(map(str, [*missing, *info["mismatched_keys"]]))
    if problems:
        raise VerificationError(
            f"transformers finds no fitting tensor for {', '.join(problems[:4])} in "
            f"{checkpoint.ref.name}",
            hint="the installed transformers may be too old for this checkpoint",
        )
    _drop_words(model)
    return model.eval()


def _drop_words(model: Any) -> None:
    """Empty the word embeddings: no image feature reads them; a 7B model's take 1 GB as fp32."""
    for words in (model.get_input_embeddings(), model.get_output_embeddings()):
        if words is not None:
            words.weight = nn.Parameter(words.weight[:0].clone(), requires_grad=False)


def free_memory() -> None:
    """Give back what a dropped model held, before the next one is loaded.

    A model refers to itself, so only the collector frees it; glibc then keeps its small blocks
    until it is told to trim.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # another C library, or none to load
        ctypes.CDLL(None).malloc_trim(0)


def cast_inputs(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs with floating-point ones in the model's dtype."""
    dtype = next(model.parameters()).dtype
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def image_features(model: Any, architecture: Architecture, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what the language model would be fed: projected image features [tokens, width]."""
    cast = cast_inputs(model, inputs)
    if architecture.encode is not None:
        return architecture.encode(model, cast)
    inner: Any = getattr(getattr(model, "model", None), "get_image_features", None)
    encode: Any = getattr(model, "get_image_features", inner)
    # The outer method may pass arguments on to the inner one without naming them.
    known = {name for each in (encode, inner or encode) for name in _parameters(each)}
    features = encode(**{key: value for key, value in cast.items() if key in known})
    pooled = getattr(features, "pooler_output", features)
    parts = pooled if isinstance(pooled, list | tuple) else [pooled]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _parameters(method: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(method).parameters


def model_logits(
    model: Any, architecture: Architecture, inputs: Mapping[str, Tensor], image_tokens: int
) -> Tensor:
    """Return logits [1, T, vocabulary] for an image of `image_tokens` between text tokens."""
    result: Tensor = model(**logit_inputs(model, architecture, inputs, image_tokens)).logits
    return result


def logit_inputs(
    model: Any, architecture: Architecture, inputs: Mapping[str, Tensor], image_tokens: int
) -> dict[str, Any]:
    """Return the keywords of a forward pass on an image of `image_tokens` between text tokens."""
    config = model.config
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    special = _special_ids(config)
    words = [index for index in range(5, 200) if index not in special][:TEXT_TOKENS]
    middle = [token] * image_tokens
    ids = torch.tensor([[*words[:3], *middle, *words[3:]]])
    cast = cast_inputs(model, inputs)
    known = _parameters(model.forward)
    is_image = torch.eq(ids, torch.tensor(token)).long()
    extra = dict.fromkeys(("mm_token_type_ids", "token_type_ids"), is_image)
    extra |= {} if architecture.prompt is None else architecture.prompt(model, cast, ids)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra, **cast}
    return {key: value for key, value in given.items() if key in known}


def _special_ids(config: Any) -> set[int]:
    values = {**vars(config), **vars(config.get_text_config())}
    return {
        value
        for key, value in values.items()
        if isinstance(value, int) and key.endswith(("_token_id", "_token_index", "_id"))
    }
