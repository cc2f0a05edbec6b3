"""Mini-Gemini (MGM, arXiv 2403.18814): two vision towers, patch-info mining, any causal LM."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcsurgery.modeling.mini_gemini.configuration_mini_gemini import MiniGeminiConfig
    from dcsurgery.modeling.mini_gemini.image_processing_mini_gemini import MiniGeminiImageProcessor
    from dcsurgery.modeling.mini_gemini.modeling_mini_gemini import (
        MiniGeminiForConditionalGeneration,
        MiniGeminiModel,
    )
    from dcsurgery.modeling.mini_gemini.processing_mini_gemini import MiniGeminiProcessor

_HOMES = {
    "MiniGeminiConfig": "configuration",
    "MiniGeminiForConditionalGeneration": "modeling",
    "MiniGeminiImageProcessor": "image_processing",
    "MiniGeminiModel": "modeling",
    "MiniGeminiProcessor": "processing",
}

__all__ = [
    "MiniGeminiConfig",
    "MiniGeminiForConditionalGeneration",
    "MiniGeminiImageProcessor",
    "MiniGeminiModel",
    "MiniGeminiProcessor",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use: transformers' own packages are lazy as well."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}_mini_gemini")
    return getattr(home, name)
