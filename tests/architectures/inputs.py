"""Random pictures and prompts for tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = Callable[[Any, int, int], dict[str, Tensor]]


def image_inputs(tokens: int, side: int) -> Inputs:
    """Return inputs for models with `tokens` image tokens per picture of `side` pixels.

    A prompt is `<s> <image>... words`; pixel_values are [batch * images, 3, side, side].
    """

    def inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(11)
        words = torch.randint(40, 200, (batch, 5), generator=draw)
        start = torch.full((batch, 1), 1)
        image = torch.full((batch, tokens * images), model.config.image_token_id)
        ids = torch.cat([start, image, words], dim=1)
        values = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            pixels = torch.randn(batch * images, 3, side, side, generator=draw)
            values["pixel_values"] = pixels.to(model.dtype)
        return values

    return inputs
