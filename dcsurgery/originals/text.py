"""The language model of an original LLaVA: its class and its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.errors import AnatomyError, UnknownArchitectureError

# The original's class -> model type and class of the language model inside.
CLASSES: dict[str, tuple[str, str]] = {
    "LlavaLlamaForCausalLM": ("llama", "LlamaForCausalLM"),
    "LlavaMistralForCausalLM": ("mistral", "MistralForCausalLM"),
    "LlavaQwenForCausalLM": ("qwen2", "Qwen2ForCausalLM"),
}
# Keys of an original config that say something about images or training, not about the text model.
_PREFIXES = ("mm_", "use_mm_", "tune_", "freeze_", "unfreeze_", "image_", "tokenizer_", "vision_")
_OTHERS = {
    "_name_or_path", "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "is_video",
    "transformers_version", "max_length", "temperature", "top_p", "top_k", "do_sample",
    "image_aspect_ratio", "_attn_implementation", "s2", "s2_scales", "quantization_config",
}  # fmt: skip


def text_class(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return model type and class name of the text model. Raises UnknownArchitectureError."""
    declared = config.get("architectures")
    name = declared[0] if isinstance(declared, list) and declared else None
    if name not in CLASSES:
        raise UnknownArchitectureError(
            f"{name} is a LLaVA in its original format whose language model has no place in "
            "transformers' LLaVA",
            hint=f"{', '.join(CLASSES)} can be read",
        )
    return CLASSES[str(name)]


def text_section(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorEntry],
    rows: int,
    kind: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Return text_config of `rows` embeddings, after comparing the original with its tensors.

    `kind` is the model type and class where another code base than LLaVA's says it. Raises
    AnatomyError.
    """
    model_type, class_name = kind or text_class(config)
    section = {
        key: value
        for key, value in config.items()
        if key not in _OTHERS and not key.startswith(_PREFIXES)
    }
    _check(config, tensors)
    return {
        "architectures": [class_name],
        "model_type": model_type,
        **section,
        "vocab_size": rows,
    }


def _check(config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> None:
    words = tensors["model.embed_tokens.weight"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    wide = tensors.get("model.layers.0.mlp.up_proj.weight")
    found = {"vocab_size": words[0], "hidden_size": words[-1], "num_hidden_layers": len(layers)}
    if wide is not None:
        found["intermediate_size"] = wide.shape[0]
    own = {layer: _names(tensors, layer) for layer in layers}
    for name in sorted(set().union(*own.values()) if own else ()):
        lacking = sorted(layer for layer in layers if name not in own[layer])
        if lacking:
            raise AnatomyError(
                f"layer {lacking[0]} of the language model has no {name}",
                hint="a shard may be missing: fetch the model again",
            )
    for key, value in found.items():
        if config.get(key, value) != value:
            raise AnatomyError(
                f"{key} in config.json is {config[key]!r}, the tensors say {value}",
                hint="compare config.json with the tensors; it may be mixed from two models",
            )


def _names(tensors: Mapping[str, TensorEntry], layer: str) -> set[str]:
    """Return the names of a layer's tensors inside it, buffers aside."""
    prefix = f"model.layers.{layer}."
    inner = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    return {name for name in inner if not name.endswith("inv_freq")}
