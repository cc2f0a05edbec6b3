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


def llava_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Random pixels and `<s> <image>... words` for a 16 pixel, 4 pixel patch tower.

    "default" cuts one token: registers stay among the image tokens.
    """
    draw = torch.Generator().manual_seed(11)
    words = torch.randint(40, 200, (batch, 5), generator=draw)
    start = torch.full((batch, 1), 1)
    registers = getattr(model.config.vision_config, "num_register_tokens", 0)
    image = torch.full((batch, (16 + registers) * images), model.config.image_token_id)
    ids = torch.cat([start, image, words], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        pixels = torch.randn(batch * images, 3, 16, 16, generator=draw)
        inputs["pixel_values"] = pixels.to(model.dtype)
        if model.config.vision_config.model_type == "pixtral":
            inputs["image_sizes"] = torch.tensor([[16, 16]] * (batch * images))
    return inputs


def idefics2_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Prompts `<s> <image>... words`; pictures differ in size and are padded with zeros."""
    draw = torch.Generator().manual_seed(11)
    vision = model.config.vision_config
    side, patch = vision.image_size, vision.patch_size
    latents = model.config.perceiver_config.resampler_n_latents
    words = torch.randint(40, 200, (batch, 5), generator=draw)
    image = torch.full((batch, latents * images), model.config.image_token_id)
    ids = torch.cat([torch.full((batch, 1), 1), image, words], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        pixels = torch.randn(batch, images, 3, side, side, generator=draw)
        mask = torch.ones(batch, images, side, side, dtype=torch.bool)
        # The first picture is whole, later ones are lower or narrower by a patch.
        mask.flatten(0, 1)[1::2, side - patch :] = False
        mask.flatten(0, 1)[2::2, :, side - patch :] = False
        inputs["pixel_values"] = (pixels * mask[:, :, None]).to(model.dtype)
        inputs["pixel_attention_mask"] = mask
    return inputs


def mini_gemini_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Random pictures of both sizes and `<s> <image>... words`."""
    draw = torch.Generator().manual_seed(11)
    config = model.config
    views = config.image_grid**2 + config.image_global
    words = torch.randint(40, 200, (batch, 5), generator=draw)
    image = torch.full((batch, 16 * views * images), config.image_token_id)
    ids = torch.cat([torch.full((batch, 1), 1), image, words], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        count = batch * images
        shape = (count, views) if config.image_grid > 1 else (count,)
        side = 32 * config.image_grid
        low = torch.randn(*shape, 3, 16, 16, generator=draw)
        high = torch.randn(count, 3, side, side, generator=draw)
        inputs |= {"pixel_values": low.to(model.dtype), "pixel_values_aux": high.to(model.dtype)}
    return inputs


TILES = 4


def mllama_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Prompts `<s> <image>... words`; the images of a batch have other numbers of tiles."""
    draw = torch.Generator().manual_seed(11)
    side = model.config.vision_config.image_size
    words = torch.randint(40, 200, (batch, 5), generator=draw)
    image = torch.full((batch, images), model.config.image_token_id)
    ids = torch.cat([torch.full((batch, 1), 1), image, words], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        pixels = torch.randn(batch, images, TILES, 3, side, side, generator=draw)
        # Ids count the supported ratios from 1: 6 is 2 x 2, 1 is 1 x 1, 2 is 1 x 2.
        kinds = torch.tensor([6, 1, 2]).repeat(2)[: batch * images].view(batch, images)
        tiles = torch.tensor([0, 1, 2, 3, 4, 2, 4])[kinds]
        mask = (torch.arange(TILES) < tiles[..., None]).long()
        seen = (ids == model.config.image_token_id).cumsum(1)[:, :, None] > torch.arange(images)
        inputs |= {
            "pixel_values": (pixels * mask[..., None, None, None]).to(model.dtype),
            "aspect_ratio_ids": kinds,
            "aspect_ratio_mask": mask,
            "cross_attention_mask": seen[..., None].long() * mask[:, None],
        }
    return inputs
