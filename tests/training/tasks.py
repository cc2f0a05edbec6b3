"""Tiny models with a connector, and rows to train them on, without any processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trainer import TrainingResult, train
from tests.architectures.cases import Case, TinyModel

WORDS = 5


@dataclass
class Rows:
    """Rows of one image and a few words; the last words are the answer."""

    rows: list[dict[str, Tensor]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]

    def name_of(self, index: int) -> str:
        return f"row-{index}"


def make_rows(tiny: TinyModel, model: Any, count: int, images: int = 1, seed: int = 0) -> Rows:
    """Return rows whose image and words are drawn; three of the five words are supervised."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        row = dict(tiny.inputs(model, 1, images))
        if "pixel_values" in row:
            pixels = torch.randn(row["pixel_values"].shape, generator=draw)
            row["pixel_values"] = pixels.to(row["pixel_values"])
        ids = row["input_ids"].clone()
        ids[:, -WORDS:] = torch.randint(40, 200, (1, WORDS), generator=draw)
        labels = torch.full_like(ids, -100)
        labels[:, -3:] = ids[:, -3:]
        rows.append({**row, "input_ids": ids, "labels": labels})
    return Rows(rows)


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join rows of one length."""
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def settings(**values: Any) -> TrainingSettings:
    """Return settings for a handful of fast steps."""
    fast = {"batch_size": 4, "max_steps": 4, "connector_lr": 1e-2, "warmup": 0.25, "save_steps": 0}
    return TrainingSettings(**{**fast, **values})


def run(case: Case, model: Any, rows: Rows, folder: Path, **values: Any) -> TrainingResult:
    """Train for a few steps."""
    options = {key: values.pop(key) for key in ("watch", "resume", "callbacks") if key in values}
    return train(model, case.plan, rows, collate, settings(**values), output_dir=folder, **options)


def snapshot(model: Any) -> dict[str, Tensor]:
    """Return a copy of every parameter."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(before: dict[str, Tensor], model: Any) -> set[str]:
    """Return the parameters that are not what they were, to the bit."""
    now = {name.replace(".base_layer", ""): value for name, value in model.named_parameters()}
    return {
        name for name, value in now.items() if name not in before or _other(value, before[name])
    }


def _other(value: Tensor, before: Tensor) -> bool:
    return not torch.equal(value.to(before.dtype), before)
