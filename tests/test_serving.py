"""A stock checkpoint means the same to serving engines as to transformers.

What engines read was taken from their source. vLLM builds a first matrix of width times the number
of listed states, keeps as many blocks as the deepest one needs, crops the class token of every
state and joins them in list order. llama.cpp walks the states upwards and tests membership, so
order and duplicates of the list are lost; it wants non-negative entries within the tower.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcsurgery.checkpoint.headers import read_header
from dcsurgery.tiny import write_tiny_llava
from tests.architectures.cases import load
from tests.closeness import assert_near
from tests.surgery import SERVED, random_matrix, write_folded


@dataclass(frozen=True)
class EngineView:
    """What an engine knows of a checkpoint: raw config and the shape of the first matrix."""

    layers: list[int]
    width: int
    depth: int
    strategy: str
    in_features: int

    @classmethod
    def read(cls, folder: Path) -> EngineView:
        config = json.loads((folder / "config.json").read_text())
        vision = config["vision_config"]
        tensors = read_header(folder / "model.safetensors").tensors
        return cls(
            layers=config["vision_feature_layer"],
            width=vision["hidden_size"],
            depth=vision["num_hidden_layers"],
            strategy=config["vision_feature_select_strategy"],
            in_features=tensors["multi_modal_projector.linear_1.weight"].shape[1],
        )

    def cropped(self, state: Tensor) -> Tensor:
        return state[:, 1:] if self.strategy == "default" else state


def run_blocks(model: Any, pixels: Tensor, count: int) -> list[Tensor]:
    """The embeddings and the outputs of the first `count` blocks; the others are never built."""
    tower = model.model.vision_tower
    blocks = tower.encoder.layers
    states: list[Tensor] = []
    handles = [
        blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs: states.append(
                args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
    ]
    for block in blocks[:count]:
        handles.append(
            block.register_forward_hook(
                lambda module, args, output: states.append(
                    output[0] if isinstance(output, tuple) else output
                )
            )
        )
    kept = tower.encoder.layers
    tower.encoder.layers = nn.ModuleList(blocks[:count])
    try:
        with torch.no_grad():
            tower(pixels)
    finally:
        tower.encoder.layers = kept
        for handle in handles:
            handle.remove()
    return states


def as_vllm(view: EngineView, model: Any, pixels: Tensor) -> Tensor:
    assert view.in_features == view.width * len(view.layers)
    deepest = max(n if n >= 0 else view.depth + n + 1 for n in view.layers)
    states = run_blocks(model, pixels, deepest)
    assert len(states) == deepest + 1
    return torch.cat([view.cropped(states[n]) for n in view.layers], dim=-1)


def as_llama_cpp(view: EngineView, model: Any, pixels: Tensor) -> Tensor:
    assert all(0 <= n <= view.depth for n in view.layers)
    wanted = set(view.layers)
    states = run_blocks(model, pixels, max(wanted))
    found = [view.cropped(state) for n, state in enumerate(states) if n in wanted]
    joined = torch.cat(found, dim=-1)
    assert joined.shape[-1] == view.in_features
    return joined


@pytest.mark.parametrize("engine", [as_vllm, as_llama_cpp], ids=lambda engine: engine.__name__)
@pytest.mark.parametrize("options", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_engine_computes_what_transformers_does(
    tower: Any, options: dict[str, Any], engine: Callable[..., Tensor], tmp_path: Path
) -> None:
    base = write_tiny_llava(tmp_path / "base", tower, processor=False)
    plan = write_folded_random(base, tmp_path / "out", options)
    view = EngineView.read(tmp_path / "out")
    assert view.layers == sorted(set(view.layers)) == plan.stock_layers
    model = load(tmp_path / "out")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        served = model.model.multi_modal_projector(engine(view, model, pixels))
        found = model.get_image_features(pixel_values=pixels).pooler_output
    expected = torch.stack(list(found)) if isinstance(found, (tuple, list)) else found
    assert_near(served, expected)


def write_folded_random(base: Path, out: Path, options: dict[str, Any]) -> Any:
    from dcsurgery.checkpoint.contents import open_checkpoint
    from dcsurgery.connectors.request import Connector
    from dcsurgery.surgery.plan import make_plan

    plan = make_plan(open_checkpoint(base), Connector.of(**options))
    return write_folded(base, out, random_matrix(plan), **options)
