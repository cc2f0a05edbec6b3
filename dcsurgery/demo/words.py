"""The demo's language: one token per word, questions and answers as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dcsurgery.demo.questions import WORDS, Question
from dcsurgery.demo.scenes import Ints

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, BEGIN, END, UNKNOWN, IMAGE = range(len(SPECIALS))
VOCABULARY = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}
IMAGE_TOKENS = 16
LONGEST = 1 + IMAGE_TOKENS + 7 + 2


@dataclass(frozen=True)
class Tokens:
    """Encoded questions: `ids` [B, T] padded on the right, `ask` [B] where the answer is predicted.

    `answer` [B] is the id of its one word; ids hold it at ask + 1 and the end token behind it.
    """

    ids: Ints
    ask: Ints
    answer: Ints

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> Ints:
        """Ids where they carry loss (answer and end token), -100 elsewhere, [B, T]."""
        place = np.arange(self.ids.shape[1]) - self.ask[:, None]
        return np.where((place == 1) | (place == 2), self.ids, -100)


def encode(questions: list[Question]) -> Tokens:
    """Return the token ids the checkpoint's tokenizer and chat template give."""
    ids = np.full((len(questions), LONGEST), PAD)
    ask = np.empty(len(questions), np.int64)
    answer = np.empty(len(questions), np.int64)
    for row, question in enumerate(questions):
        words = question.text.replace("?", " ?").split()
        line = [BEGIN, *[IMAGE] * IMAGE_TOKENS, *(VOCABULARY[word] for word in words)]
        ask[row], answer[row] = len(line) - 1, VOCABULARY[question.answer]
        line += [int(answer[row]), END]
        ids[row, : len(line)] = line
    return Tokens(ids, ask, answer)
