"""Models that transformers does not have, known to its Auto classes on request."""

from __future__ import annotations


def register() -> None:
    """Tell transformers' Auto classes about the models of this package (Mini-Gemini).

    `dcsurgery.load` does it by itself; a program that loads such a folder with
    `AutoModelForImageTextToText.from_pretrained` calls this once before. Calling it again is free.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    from dcsurgery.modeling import mini_gemini as mgm

    config = mgm.MiniGeminiConfig
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, mgm.MiniGeminiModel, exist_ok=True)
    AutoModelForImageTextToText.register(
        config, mgm.MiniGeminiForConditionalGeneration, exist_ok=True
    )
    AutoImageProcessor.register(
        config, slow_image_processor_class=mgm.MiniGeminiImageProcessor, exist_ok=True
    )
    AutoProcessor.register(config, mgm.MiniGeminiProcessor, exist_ok=True)
