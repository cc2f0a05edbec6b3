"""Qwen2.5-VL: window order inside the blocks; EXAONE 4.5 is built alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcsurgery.connectors.request import Connector
from tests.architectures.cases import TinyModel, make_case
from tests.architectures.fresh import save_fresh
from tests.architectures.packed import VideoContract
from tests.tiny.qwen2_5_vl import qwen2_5_vl_config, write_tiny_qwen2_5_vl


class TestQwen25VL(VideoContract):
    write = staticmethod(write_tiny_qwen2_5_vl)
    other_sizes: ClassVar = {"depth": 6, "width": 32, "patch_size": 6, "merge": 4, "window": 1}
    frames_apart = False

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state.view(-1, model.model.visual.merger.hidden_size)

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (model.model.visual.merger.ln_q,)

    def test_blocks_work_in_window_order(self, tiny_model: TinyModel) -> None:
        """The tiny model has several windows, so that raster and window order differ: what the
        blocks see is not what the merger returns."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached()
        inputs = self.inputs(model, 1, 2)
        orders: list[Tensor] = []
        tower = self.tower(model)
        permute = tower.permute_input_for_window_attn

        def note(states: Tensor, order: Tensor, seq_len: int) -> Tensor:
            orders.append(order)
            moved: Tensor = permute(states, order, seq_len=seq_len)
            return moved

        tower.permute_input_for_window_attn = note
        self.states(model, inputs)
        assert not torch.equal(orders[0], orders[0].sort().values)


def exaone_config() -> dict[str, Any]:
    """The same tower with grouped key heads, before an EXAONE 4 language model."""
    config = qwen2_5_vl_config()
    vision = {**config.pop("vision_config"), "model_type": "exaone4_5_vision"}
    text = {key: value for key, value in config.items() if not key.startswith("rope_")}
    text |= {"model_type": "exaone4", "layer_types": ["full_attention"] * 2, "sliding_window": None}
    return {
        "architectures": ["Exaone4_5_ForConditionalGeneration"],
        "model_type": "exaone4_5",
        "image_token_id": config["image_token_id"],
        "video_token_id": config["video_token_id"],
        "text_config": text,
        "vision_config": {**vision, "num_key_value_heads": 1},
    }


class ExaoneMember(TestQwen25VL):
    __test__ = False
    typed = False


def test_exaone_is_a_member(tmp_path: Path) -> None:
    folder = save_fresh(tmp_path / "base", exaone_config())
    case = ExaoneMember().check_member(folder, tmp_path, Connector("dci"))
    assert case.anatomy.tower.kind == "exaone4_5_vision"
    assert case.anatomy.language_model == "exaone4"
