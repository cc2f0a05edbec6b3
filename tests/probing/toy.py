"""A model whose hidden states are what a test puts into them, and rows that plant a signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dcsurgery.anatomy import Anatomy, Projector, Site, VisionTower
from dcsurgery.probing.advice import Advice, Candidates
from dcsurgery.probing.gains import Gains
from dcsurgery.probing.listen import Blocks
from dcsurgery.probing.slopes import ProbeRow, Subject, measure_slopes

DEPTH, TOKENS, WIDTH, OUT, CLASSES = 5, 4, 6, 8, 3
FEATURE = 4
# States [T, DEPTH + 1, C] of a row of class y.
Paint = Callable[[torch.Generator, int], Tensor]


class Block(nn.Module):
    """Gives the state that the pixels hold for it."""

    def __init__(self, state: int) -> None:
        super().__init__()
        self.state = state

    def forward(self, hidden: Tensor, pixels: Tensor) -> Tensor:
        return pixels[:, :, self.state]


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(state) for state in range(1, DEPTH + 1))

    def forward(self, pixels: Tensor) -> Tensor:
        hidden, found = pixels[:, :, 0], []
        for block in self.layers:
            hidden = block(hidden, pixels)
            found.append(hidden)
        return found[FEATURE - 1]


class Toy(nn.Module):
    """Projects the feature layer of four patches and names a class at the first position."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.tower, self.projector = Tower(), nn.Linear(WIDTH, OUT)
        self.head = nn.Linear(OUT, CLASSES)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(0.3 * torch.randn(value.shape, generator=draw))

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
        seen = torch.tanh(self.projector(self.tower(pixel_values))).mean(1)
        return SimpleNamespace(logits=self.head(seen)[:, None].expand(-1, input_ids.shape[1], -1))


TOWER = VisionTower("toy", "tower", "tower.layers", WIDTH, DEPTH, 0, 2, 1)
ANATOMY = Anatomy(
    architecture="toy",
    tower=TOWER,
    projector=Projector(
        (Site("projector", "projector.weight", WIDTH, OUT),), ("projector.weight",)
    ),
    feature_layers=(FEATURE,),
    feature_width=WIDTH,
    dropped_tokens=0,
    image_tokens=TOKENS,
    variable_resolution=False,
    language_model="toy",
    dtype="F32",
)


def noise(draw: torch.Generator, label: int) -> Tensor:
    """States without any signal."""
    return torch.randn(TOKENS, DEPTH + 1, WIDTH, generator=draw)


def planted(states: Sequence[int], draw: torch.Generator, label: int, size: float = 1.5) -> Tensor:
    """States of which some carry the class in its own channel."""
    found = noise(draw, label)
    for state in states:
        found[:, state, label] += size
    return found


def make_rows(
    paint: Paint, count: int = 160, folds: int = 4, seed: int = 0, each: int = 1
) -> list[ProbeRow]:
    """Rows of random classes, fold by fold; `each` rows share a picture."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        label = int(torch.randint(CLASSES, (1,), generator=draw))
        batch = {
            "input_ids": torch.zeros(1, 2, dtype=torch.long),
            "labels": torch.tensor([[-100, label]]),
            "pixel_values": paint(draw, label)[None],
        }
        kind = ("odd", "even")[number % 2]
        place = number // each
        rows.append(ProbeRow(f"row-{number}", place % folds, place, kind, partial(dict, batch)))
    return sorted(rows, key=lambda row: row.fold)


@dataclass(frozen=True)
class Probed:
    gains: Gains
    candidates: Candidates
    report: dict[str, Any]

    def gain(self, state: int) -> float:
        return self.gains.mean(self.gains.rows([self.candidates.place(state)]))


def probe_toy(
    rows: Sequence[ProbeRow], installed: Blocks = (), model: nn.Module | None = None
) -> Probed:
    """What a probe says of the toy on these rows; `installed` blocks are read today, too."""
    candidates = Candidates(ANATOMY)
    subject = Subject(model or Toy(), ANATOMY, installed=installed)
    slopes = measure_slopes(subject, rows, candidates.all)
    gains = Gains(slopes, [row.picture for row in rows], [row.kind for row in rows])
    return Probed(gains, candidates, Advice(gains, candidates, installed).fields())
