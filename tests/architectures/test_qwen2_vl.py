"""Qwen2-VL: packed patches, a merger inside the tower, published names and flat config."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import dcsurgery
from dcsurgery.connectors.request import Connector
from dcsurgery.tiny.weights import write_model
from tests.architectures.cases import load, logits, make_case
from tests.architectures.packed import VideoContract
from tests.tiny.qwen2_vl import qwen2_vl_config, write_tiny_qwen2_vl


class TestQwen2VL(VideoContract):
    write = staticmethod(write_tiny_qwen2_vl)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4}
    frames_apart = False

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state.view(-1, model.model.visual.merger.hidden_size)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.visual.merger.ln_q,)


def test_module_names_and_a_config_that_is_flat_and_nested(tmp_path: Path) -> None:
    """Transformers 4.52 to 4.57 wrote module names, and the language model's keys twice."""
    config = qwen2_vl_config(width=32)
    text = {key: value for key, value in config.items() if not key.startswith(("vision", "arch"))}
    config["text_config"] = {**text, "model_type": "qwen2_vl_text"}
    config["vision_config"] |= {"model_type": "qwen2_vl", "in_channels": 3}
    base = write_model(tmp_path / "base", config["architectures"][0], config)
    case = make_case(TestQwen2VL.built(base), Connector("sci"))
    (site,) = case.anatomy.projector.sites
    assert site.weight == "model.visual.merger.mlp.0.weight"
    assert case.anatomy.tower.kind == "qwen2_vl_vision"
    assert case.anatomy.language_model == "qwen2_vl_text"
    # vision_config.hidden_size is the language model's width: only embed_dim is the tower's.
    assert case.anatomy.tower.width == 32 != config["vision_config"]["hidden_size"]
    dcsurgery.convert(base, tmp_path / "out", connector="sci")
    model = dcsurgery.load(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(logits(case, model), logits(case, load(base)))
