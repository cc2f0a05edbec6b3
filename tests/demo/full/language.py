"""Pre-training of the language model: questions about scenes it is told in symbols, not shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dcsurgery.demo.checkpoints import TEXT, WIDTH
from dcsurgery.demo.questions import ask_any
from dcsurgery.demo.scenes import BACKGROUNDS, COLOURS, DIGITS, SIZES, TILTS, Scenes, draw_scenes
from dcsurgery.demo.words import END, IMAGE_TOKENS, Tokens, encode
from tests.demo.full.descent import descend
from tests.demo.full.tower import token_corners

BATCH = 128
ENOUGH = 0.94
_CHOICES = (len(DIGITS), len(COLOURS), len(SIZES), len(TILTS))


class Symbols(nn.Module):
    """What the image tokens of a scene would be if attributes were words: a sum of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        # The last row of each table is an empty corner.
        self.tables = nn.ModuleList(nn.Embedding(count + 1, WIDTH) for count in _CHOICES)
        self.paper = nn.Embedding(len(BACKGROUNDS), WIDTH)
        for table in (*self.tables, self.paper):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, scenes: Scenes) -> Tensor:
        """Return image tokens [B, 16, 64]."""
        total = self.paper(torch.from_numpy(scenes.background))[:, None]
        parts = (scenes.digit, scenes.colour, scenes.size, scenes.tilt)
        for table, part, choices in zip(self.tables, parts, _CHOICES, strict=True):
            total = total + table(torch.from_numpy(np.where(part < 0, choices, part)))
        tokens: Tensor = total[:, token_corners()]
        return tokens


def answer_logits(body: Any, head: nn.Module, image: Tensor, tokens: Tokens) -> Tensor:
    """Return logits [B, 2, V] where the answer and the end token are predicted.

    `body` is a LlamaModel, `image` [B, N, 64] what it gets in place of the image tokens.
    """
    ids = torch.from_numpy(tokens.ids[:, :-1])
    embedded = body.embed_tokens(ids)
    embedded = torch.cat([embedded[:, :1], image, embedded[:, 1 + IMAGE_TOKENS :]], dim=1)
    # Padding stands on the right, where a causal model does not look back at it.
    hidden = body(inputs_embeds=embedded, use_cache=False).last_hidden_state
    places = torch.from_numpy(tokens.ask)[:, None] + torch.arange(2)
    logits: Tensor = head(hidden[torch.arange(len(hidden))[:, None], places])
    return logits


def answer_loss(logits: Tensor, tokens: Tokens) -> Tensor:
    """Return the mean loss over answers and end tokens."""
    wanted = torch.stack([torch.from_numpy(tokens.answer), torch.full((len(logits),), END)], dim=1)
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def train_language(
    seed: int, steps: int = 1000, rate: float = 3e-3, cycles: int = 5
) -> tuple[Any, float]:
    """Return a LlamaForCausalLM that answers about symbols, and its share of right answers.

    Some seeds stay for long where attributes are named but not bound to their digit: they get
    another cycle of `steps`, up to `cycles`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    generator = np.random.default_rng([seed, 2])
    language = LlamaForCausalLM(LlamaConfig(**TEXT))
    symbols = Symbols()
    share = 0.0

    def loss() -> Tensor:
        scenes = draw_scenes(generator, BATCH)
        tokens = encode(ask_any(generator, scenes))
        logits = answer_logits(language.model, language.lm_head, symbols(scenes), tokens)
        return answer_loss(logits, tokens)

    for _ in range(cycles):
        descend([*language.parameters(), *symbols.parameters()], loss, steps, rate)
        share = _told(language, symbols, generator)
        if share > ENOUGH:
            break
    return language.eval(), share


@torch.no_grad()
def _told(language: Any, symbols: Symbols, generator: np.random.Generator) -> float:
    scenes = draw_scenes(generator, 2000)
    tokens = encode(ask_any(generator, scenes))
    logits = answer_logits(language.model, language.lm_head, symbols(scenes), tokens)
    return float((logits[:, 0].argmax(-1) == torch.from_numpy(tokens.answer)).float().mean())
