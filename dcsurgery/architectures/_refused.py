"""Families that are recognised and cannot take a dense connector, with the reason."""

from __future__ import annotations

from typing import Any

_QFORMER = "a Q-Former reads the tower: its projection sees query tokens, not patch tokens"
_PYRAMID = "its tower is a pyramid: stages differ in channels and resolution"
_CODEBOOK = "it has no vision tower: images become tokens of a codebook or raw patches"

REFUSED: dict[str, str] = {
    "Blip2ForConditionalGeneration": _QFORMER,
    "InstructBlipForConditionalGeneration": _QFORMER,
    "InstructBlipVideoForConditionalGeneration": _QFORMER,
    "Granite4VisionForConditionalGeneration": (
        "it already reads many hidden states, each through a Q-Former of its own"
    ),
    "AriaForConditionalGeneration": "its projector is a cross-attention resampler",
    "FastVlmForConditionalGeneration": _PYRAMID,
    "Florence2ForConditionalGeneration": _PYRAMID,
    "Gemma3nForConditionalGeneration": _PYRAMID,
    "GotOcr2ForConditionalGeneration": (
        "its tower (SAM) gives feature maps and narrows them by convolutions before the projector"
    ),
    "Ovis2ForConditionalGeneration": (
        "its tower feeds a softmax over a visual vocabulary, not a projector"
    ),
    "FuyuForCausalLM": _CODEBOOK,
    "ChameleonForConditionalGeneration": _CODEBOOK,
    "Emu3ForConditionalGeneration": _CODEBOOK,
}


def original_format(config: dict[str, Any], class_name: str) -> bool:
    """Return whether a config belongs to the original LLaVA code base or one of its forks."""
    return bool(config.get("mm_vision_tower")) or class_name.startswith(
        ("LlavaLlama", "LlavaMistral", "LlavaQwen")
    )
