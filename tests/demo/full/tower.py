"""Pre-training of a vision tower on names alone: every patch token names its corner's digit.

Dense semantic supervision, not contrastive: nothing asks for colour, size, lean or background.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dcsurgery.demo.checkpoints import PATCH, VISION, WIDTH
from dcsurgery.demo.digits import Split
from dcsurgery.demo.rows import to_pixels
from dcsurgery.demo.scenes import DIGITS, IMAGE_SIZE, Scenes, draw_scenes, paint
from tests.demo.full.descent import descend

GRID = IMAGE_SIZE // PATCH
BATCH = 64
# Pictures are painted once and seen several times: painting costs a third of a step.
POOL = 24000


def token_corners() -> Tensor:
    """Return the corner of every patch token [16], row by row."""
    half = torch.arange(GRID) // (GRID // 2)
    return (2 * half[:, None] + half[None]).flatten()


def token_names(scenes: Scenes) -> Tensor:
    """Return what every patch token should say, [B, 16]: its corner's digit, 10 for none."""
    digit = torch.from_numpy(np.where(scenes.digit < 0, len(DIGITS), scenes.digit))
    return digit[:, token_corners()]


def train_tower(
    seed: int, steps: int = 2500, rate: float = 2e-3, asked: int = 1000
) -> tuple[Any, float]:
    """Return a trained CLIPVisionModel and the share of occupied validation tokens it names.

    `asked` is the number of validation pictures.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(seed)
    generator = np.random.default_rng([seed, 1])
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(DIGITS) + 1))
    pool = min(POOL, steps * BATCH)
    scenes = draw_scenes(generator, pool)
    pictures, names = paint(generator, scenes, "train"), token_names(scenes)

    def loss() -> Tensor:
        rows = generator.integers(0, pool, BATCH)
        said = head(tower(to_pixels(pictures[rows])).last_hidden_state[:, 1:])
        return functional.cross_entropy(said.flatten(0, 1), names[rows].flatten())

    descend([*tower.parameters(), *head.parameters()], loss, steps, rate, decay=0.05)
    return tower.eval(), name_accuracy(tower, head, "val", asked)


@torch.no_grad()
def name_accuracy(tower: Any, head: nn.Module, split: Split, number: int) -> float:
    """Return the share of tokens in occupied corners whose digit is named."""
    generator = np.random.default_rng(7)
    scenes = draw_scenes(generator, number)
    said = head(tower(to_pixels(paint(generator, scenes, split))).last_hidden_state[:, 1:])
    names = token_names(scenes)
    there = names < len(DIGITS)
    return float((said.argmax(-1) == names)[there].float().mean())
