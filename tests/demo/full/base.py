"""Training of a base LLaVA: a projector between a finished tower and a finished language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcsurgery.demo.checkpoints import CONFIG, FEATURE_LAYER
from dcsurgery.demo.digits import Split
from dcsurgery.demo.questions import ask_any
from dcsurgery.demo.rows import to_pixels
from dcsurgery.demo.scenes import Scenes, draw_scenes, paint
from dcsurgery.demo.words import Tokens, encode
from tests.demo.full.descent import descend
from tests.demo.full.language import answer_logits, answer_loss

BATCH = 64
POOL = 12000
# First the projector alone, then the language model with it, as LLaVA does: steps and top rate.
STAGES = ((400, 3e-3), (600, 2e-3))


def assemble(tower: Any, language: Any) -> Any:
    """Return a LlavaForConditionalGeneration made of a tower and a language model."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration(LlavaConfig.from_dict(CONFIG))
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    return model


@torch.no_grad()
def features(tower: Any, generator: np.random.Generator, scenes: Scenes, split: Split) -> Tensor:
    """Return what the projector reads of freshly painted scenes, [B, 16, 64]."""
    parts = []
    pictures = paint(generator, scenes, split)
    for start in range(0, len(pictures), 500):
        pixels = to_pixels(pictures[start : start + 500])
        states = tower(pixels, output_hidden_states=True).hidden_states
        parts.append(states[FEATURE_LAYER][:, 1:])
    return torch.cat(parts)


def train_base(
    seed: int,
    tower: Any,
    language: Any,
    stages: Sequence[tuple[int, float]] = STAGES,
    asked: int = 3000,
) -> tuple[Any, float]:
    """Return a base LLaVA in eval mode and its share of right answers to `asked` questions."""
    torch.manual_seed(seed)
    generator = np.random.default_rng([seed, 3])
    model = assemble(tower, language)
    projector = model.model.multi_modal_projector
    body, head = model.model.language_model, model.lm_head
    pool = min(POOL, BATCH * sum(steps for steps, _ in stages))
    scenes = draw_scenes(generator, pool)
    seen = features(tower, generator, scenes, "train")

    def loss() -> Tensor:
        rows = generator.integers(0, pool, BATCH)
        tokens = encode(ask_any(generator, scenes.take(rows)))
        image = projector(seen[torch.from_numpy(rows)])
        return answer_loss(answer_logits(body, head, image, tokens), tokens)

    weights = list(projector.parameters())
    for steps, rate in stages:
        descend(weights, loss, steps, rate, betas=(0.9, 0.999))
        weights += [*body.parameters(), *head.parameters()]
    return model.eval(), _validate(model, tower, asked)


@torch.no_grad()
def _validate(model: Any, tower: Any, number: int) -> float:
    generator = np.random.default_rng(11)
    scenes = draw_scenes(generator, number)
    tokens = encode(ask_any(generator, scenes))
    image = model.model.multi_modal_projector(features(tower, generator, scenes, "val"))
    return _right(model, image, tokens)


def _right(model: Any, image: Tensor, tokens: Tokens) -> float:
    logits = answer_logits(model.model.language_model, model.lm_head, image, tokens)
    return float((logits[:, 0].argmax(-1) == torch.from_numpy(tokens.answer)).float().mean())
