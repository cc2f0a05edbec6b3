"""Qwen3-VL, dense and mixture of experts: DeepStack's mergers stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor, nn

from dcsurgery.connectors.request import Connector
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.fresh import save_fresh
from tests.architectures.packed import VideoContract
from tests.surgery import random_matrix
from tests.tiny.qwen3_vl import qwen3_vl_config, write_tiny_qwen3_vl


class TestQwen3VL(VideoContract):
    write = staticmethod(write_tiny_qwen3_vl)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4, "grid": 8}

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state.view(-1, model.model.visual.merger.hidden_size)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.visual.merger.norm,)

    def test_deepstack_is_untouched(self, tiny_model: TinyModel) -> None:
        """What DeepStack adds to the language model's layers is the base's, whatever D is."""
        case = make_case(tiny_model, self.specs[0])
        model, base = case.attached(random_matrix(case.plan)), load(tiny_model.folder)
        inputs = self.inputs(base, 1, 2)
        arguments = (inputs["pixel_values"], inputs["image_grid_thw"])
        with torch.no_grad():
            mine, theirs = self.tower(model)(*arguments), self.tower(base)(*arguments)
        assert len(theirs.deepstack_features) == 1
        for found, wanted in zip(mine.deepstack_features, theirs.deepstack_features, strict=True):
            assert torch.equal(found, wanted)
        assert not torch.equal(mine.pooler_output, theirs.pooler_output)


def sibling_config(model_type: str, **more: Any) -> dict[str, Any]:
    """Return the tiny config under another model type, with more keys for the language model."""
    config = qwen3_vl_config()
    text = {**config["text_config"], "model_type": f"{model_type}_text", **more}
    vision = {**config["vision_config"], "model_type": model_type}
    return {**config, "model_type": model_type, "text_config": text, "vision_config": vision}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "rope_scaling": {
        "mrope_interleaved": True,
        "mrope_section": [1, 1, 1],
        "partial_rotary_factor": 0.5,
        "rope_type": "default",
    },
}
SPARSE = {
    "hc_count": 2,
    "hc_lowrank": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "indexer_head_dim": 8,
    "indexer_kv_heads": 1,
    "indexer_n_heads": 2,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 1,
}
FULL = {"rope_type": "default", "rope_theta": 20000.0, "mrope_section": [2, 2, 2]}
COMPASS = {
    "layer_types": ["full_attention"] * 2,
    "logit_scale": 1.0,
    "rope_parameters": {"full_attention": FULL},
    "sliding_window": 64,
}


def compass_config() -> dict[str, Any]:
    """Return the tiny config of a Cohere Compass: rotary positions are stated layer by layer."""
    config = sibling_config("cohere_compass", **COMPASS)
    for key in ("rms_norm_eps", "rope_scaling", "rope_theta"):
        del config["text_config"][key]
    return config


SIBLINGS = {
    "Qwen3VLMoeForConditionalGeneration": sibling_config("qwen3_vl_moe", **EXPERTS),
    "Qwen3_5ForConditionalGeneration": sibling_config("qwen3_5", **HYBRID),
    "Qwen3_5MoeForConditionalGeneration": sibling_config(
        "qwen3_5_moe", **HYBRID, **EXPERTS, shared_expert_intermediate_size=16
    ),
    "Qwen4ExpForConditionalGeneration": sibling_config(
        "qwen4_exp", **HYBRID, **EXPERTS, **SPARSE, shared_expert_intermediate_size=16
    ),
    "CohereCompassForConditionalGeneration": compass_config(),
}


@pytest.mark.parametrize("class_name", SIBLINGS)
@pytest.mark.slow
def test_siblings_are_members(class_name: str, tmp_path: Path) -> None:
    if not hasattr(transformers, class_name):
        pytest.skip("newer transformers")
    folder = save_fresh(tmp_path / "base", {**SIBLINGS[class_name], "architectures": [class_name]})
    case = TestQwen3VL().check_member(folder, tmp_path, Connector("dci"))
    assert case.anatomy.language_model == SIBLINGS[class_name]["text_config"]["model_type"]
