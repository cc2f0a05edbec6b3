"""GLM-4.1V and its siblings: the first matrix is a convolution inside the tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor, nn

from dcsurgery.connectors.request import Connector
from tests.architectures.cases import TinyModel, logits, make_case
from tests.architectures.fresh import save_fresh
from tests.architectures.packed import (
    GRIDS,
    VIDEO,
    Picture,
    VideoContract,
    packed_forward,
)
from tests.surgery import random_matrix
from tests.tiny.glm4v import glm4v_config, write_tiny_glm4v


class TestGlm4v(VideoContract):
    write = staticmethod(write_tiny_glm4v)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4, "grid": 8}
    video_token = "image_token_id"

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """output_hidden_states has the merged output in its last place: ask the block."""
        last: list[Tensor] = []
        block = model.model.visual.blocks[-1]
        handle = block.register_forward_hook(lambda module, args, output: last.append(output))
        try:
            states = super().states(model, inputs)
        finally:
            handle.remove()
        return (*states[:-1], last[0])

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Cut windows out of each window's own 2 x 2 map, as a convolution does."""
        m = model.config.vision_config.spatial_merge_size
        maps = state.view(-1, m * m, state.shape[-1]).transpose(1, 2).unflatten(2, (m, m))
        return torch.nn.functional.unfold(maps, m, stride=m).squeeze(-1)

    def site_input(
        self, model: Any, case: Any, states: Any, inputs: dict[str, Tensor], site: int
    ) -> Tensor:
        rows = super().site_input(model, case, states, inputs, site)
        m = model.config.vision_config.spatial_merge_size
        return rows.unflatten(1, (-1, m, m))

    def test_images_and_videos_in_one_pass(self, tiny_model: TinyModel) -> None:
        """The model refuses the mixture, after the tower ran: nothing of it stays behind."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        pictures = [Picture(GRIDS[1], 2), Picture(VIDEO, 2, video=True)]
        expected = logits(case, model)
        with pytest.raises(ValueError, match="do not match"):
            packed_forward(model, self.prompts(model, [pictures]))
        assert torch.equal(logits(case, model), expected)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.visual.post_layernorm,)


def sibling_config(own_type: str, vision_type: str, **more: Any) -> dict[str, Any]:
    """Return the tiny config under another model type, with more keys for the language model."""
    config = glm4v_config()
    vision = {**config["vision_config"], "model_type": vision_type}
    text = {**config["text_config"], **more}
    return {**config, "model_type": own_type, "text_config": text, "vision_config": vision}


EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def next_config() -> dict[str, Any]:
    """Return the tiny config of a GLM 5: linear and sparse attention, no positions."""
    config = sibling_config(
        "glm5_next",
        "glm5_next_vision",
        model_type="glm5_next_text",
        hc_mult=2,
        index_head_dim=8,
        index_kpool=2,
        index_n_heads=2,
        index_topk=4,
        kv_lora_rank=8,
        layer_types=["linear_attention", "indexed_attention"],
        linear_head_dim=8,
        linear_num_heads=2,
        q_lora_rank=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        **{**EXPERTS, "num_experts_per_tok": 1},
    )
    for key in ("partial_rotary_factor", "rope_scaling", "rope_theta"):
        del config["text_config"][key]
    config["vision_config"]["projection_intermediate_size"] = 40
    return config


SIBLINGS = {
    "Glm46VForConditionalGeneration": sibling_config("glm46v", "glm4v_vision"),
    "Glm4vMoeForConditionalGeneration": sibling_config(
        "glm4v_moe", "glm4v_moe", model_type="glm4v_moe_text", **EXPERTS
    ),
    "GlmOcrForConditionalGeneration": sibling_config(
        "glm_ocr", "glm_ocr_vision", model_type="glm_ocr_text"
    ),
    "Glm5NextForConditionalGeneration": next_config(),
}


@pytest.mark.parametrize("class_name", SIBLINGS)
@pytest.mark.slow
def test_siblings_are_members(class_name: str, tmp_path: Path) -> None:
    if not hasattr(transformers, class_name):
        pytest.skip("newer transformers")
    folder = save_fresh(tmp_path / "base", {**SIBLINGS[class_name], "architectures": [class_name]})
    case = TestGlm4v().check_member(folder, tmp_path, Connector("dci"))
    assert case.anatomy.language_model == SIBLINGS[class_name]["text_config"]["model_type"]
