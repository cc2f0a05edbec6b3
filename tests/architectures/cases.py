"""A tiny model with a connector planned for it: what the contract's tests work on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, find_architecture
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.attach import attach
from dcsurgery.connectors.request import Connector
from dcsurgery.features import FeatureLayout
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import SurgeryPlan
from tests.surgery import random_matrix


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint folder and its inputs.

    `inputs(model, batch, images)` returns keyword arguments for `batch` prompts with `images`
    images each (0: text only). `forward(model, inputs)` returns logits.
    """

    folder: Path
    inputs: Callable[[Any, int, int], dict[str, Tensor]]
    forward: Callable[[Any, dict[str, Tensor]], Tensor] = lambda model, inputs: (
        model(**inputs).logits
    )


@dataclass(frozen=True)
class Case:
    """One connector on one tiny model."""

    tiny: TinyModel
    spec: Connector
    architecture: Architecture
    plan: SurgeryPlan

    @property
    def anatomy(self) -> Anatomy:
        return self.plan.anatomy

    @property
    def layout(self) -> FeatureLayout:
        return self.plan.layout

    @property
    def options(self) -> dict[str, Any]:
        return {"connector": self.spec.kind, "groups": self.spec.groups, "layers": self.spec.layers}

    def plain(self, dtype: torch.dtype = torch.float32) -> Any:
        """Return the unmodified model: do not change it."""
        return _loaded_once(self.tiny.folder, dtype)

    @cached_property
    def weight(self) -> Tensor:
        """A random matrix for the connector."""
        return random_matrix(self.plan)

    @cached_property
    def zero(self) -> Any:
        """The model with an empty connector: do not change it."""
        return self.attached()

    @cached_property
    def loud(self) -> Any:
        """The model with the random matrix: do not change it."""
        return self.attached(self.weight)

    def attached(self, weight: Tensor | None = None, **kwargs: torch.dtype) -> Any:
        """Return a model of the caller's own, with this matrix or an empty one."""
        model = copy.deepcopy(self.plain(**kwargs))
        tensors = {} if weight is None else {"weight": weight}
        attach(model, self.anatomy, self.layout, self.architecture.arrange, tensors)
        return model


@lru_cache(maxsize=4)
def _loaded_once(folder: Path, dtype: torch.dtype) -> Any:
    """Load a tiny model once: copying it takes a quarter of the time."""
    return load(folder, dtype=dtype)


def load(folder: Path, **kwargs: Any) -> Any:
    """Load with plain transformers; every key must be found, used and of the right shape."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, **{"dtype": torch.float32, **kwargs}
    )
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")), info
    return model.eval()


def make_case(tiny: TinyModel, spec: Connector) -> Case:
    checkpoint = open_checkpoint(tiny.folder)
    return Case(tiny, spec, find_architecture(checkpoint.config), make_plan(checkpoint, spec))


def logits(case: Case, model: Any, batch: int = 1, images: int = 1) -> Tensor:
    inputs = case.tiny.inputs(model, batch, images)
    with torch.no_grad():
        return case.tiny.forward(model, inputs)
