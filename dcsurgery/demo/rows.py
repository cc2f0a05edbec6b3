"""Pictures and questions in memory: what training reads, and how answers are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcsurgery.demo.digits import Bytes, Split
from dcsurgery.demo.questions import KINDS, Question, any_kinds, ask
from dcsurgery.demo.scenes import Ints, draw_scenes, paint
from dcsurgery.demo.words import PAD, Tokens, encode

# Questions answered at once.
BATCH = 250
# The statistics of CLIPImageProcessor, which the checkpoint's processor files name.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def to_pixels(pictures: Bytes) -> Tensor:
    """Return pixel values [B, 3, 48, 48] of pictures [B, 48, 48, 3], as the processor does."""
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


@dataclass(frozen=True)
class Rows:
    """Questions about pictures [scenes, 48, 48, 3]: a data set for training, or an exam."""

    questions: list[Question]
    pictures: Bytes
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> int:
        """Return the row's number: `batch` makes whole batches at once, which is faster."""
        return int(index)

    def batch(self, rows: Sequence[int] | Ints) -> dict[str, Tensor]:
        """Return rows as a batch, padded on the right: ids, labels, mask [B, T], pixel values."""
        ids = torch.from_numpy(self.tokens.ids[rows])
        scenes = [self.questions[row].scene for row in rows]
        return {
            "input_ids": ids,
            "labels": torch.from_numpy(self.tokens.labels[rows]),
            "attention_mask": (ids != PAD).long(),
            "pixel_values": to_pixels(self.pictures[scenes]),
        }

    @property
    def kinds(self) -> NDArray[np.str_]:
        """The question type of every row."""
        return np.array([question.kind for question in self.questions])


# Arms of one tower in one process share them.
@lru_cache(maxsize=2)
def training_rows(seed: int, scenes: int, number: int) -> Rows:
    """Return `number` questions of random types about training scenes."""
    generator = np.random.default_rng([seed, 4])
    each = -(-number // scenes)
    drawn = draw_scenes(generator, scenes)
    questions = ask(generator, drawn, any_kinds(generator, number), each)
    return Rows(questions, paint(generator, drawn, "train"), encode(questions))


@lru_cache(maxsize=4)
def exam_rows(seed: int, split: Split, scenes: int) -> Rows:
    """Return one question of every type about each of some scenes of a split."""
    generator = np.random.default_rng([seed, 5])
    drawn = draw_scenes(generator, scenes)
    questions = ask(generator, drawn, [*KINDS] * scenes, len(KINDS))
    return Rows(questions, paint(generator, drawn, split), encode(questions))


@torch.no_grad()
def said(model: Any, rows: Rows) -> Ints:
    """Return the ids of the words a model answers with, [B]: the likeliest first token."""
    found = [
        _answers(model, rows, np.arange(start, min(start + BATCH, len(rows))))
        for start in range(0, len(rows), BATCH)
    ]
    answers: Ints = torch.cat(found).numpy()
    return answers


def _answers(model: Any, rows: Rows, chosen: Ints) -> Tensor:
    batch = rows.batch(chosen)
    del batch["labels"]
    logits = model(**batch, use_cache=False).logits
    last: Tensor = logits[torch.arange(len(chosen)), torch.from_numpy(rows.tokens.ask[chosen])]
    return last.argmax(dim=-1)
