"""Llama 3.2 Vision: two transformers in one tower, interleaved columns, cross-attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dcsurgery
from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.passes import block_input
from dcsurgery.errors import AnatomyError, PlanError
from dcsurgery.verification.inputs import prepare_inputs
from dcsurgery.verification.models import image_features
from tests.architectures.cases import Case, TinyModel, load
from tests.architectures.contract import StockContract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.architectures.inputs import TILES, mllama_inputs
from tests.tiny.mllama import mllama_config, write_tiny_mllama

VISION = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


class MllamaContract(StockContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_mllama(folder, shards=shards), mllama_inputs)

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The first transformer's own list leaves out what it was given."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found.extend([args[0], *output.hidden_states])

        handle = model.model.vision_model.transformer.register_forward_hook(keep)
        model.model.vision_model(**{key: inputs[key] for key in VISION})
        handle.remove()
        return tuple(found)

    def tokens(self, anatomy: Anatomy, inputs: dict[str, Tensor]) -> int:
        """All tiles in a row, each padded to a multiple of eight."""
        return TILES * -(-(anatomy.tower.grid**2 + 1) // 8) * 8

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        batch, images = inputs["aspect_ratio_ids"].shape
        tiles = state.unflatten(1, (TILES, -1)).unflatten(0, (batch, images))
        return tiles[:, :, :, : model.model.vision_model.num_patches]

    def site_input(
        self,
        model: Any,
        case: Case,
        states: tuple[Tensor, ...],
        inputs: dict[str, Tensor],
        site: int,
    ) -> Tensor:
        """The global output, then channel by channel what each listed block says."""
        rows = [self.rows(model, states[i], inputs) for i in case.anatomy.feature_layers]
        with torch.no_grad():
            joined = model.model.vision_model(**{key: inputs[key] for key in VISION})
        width = case.anatomy.tower.width
        whole = joined.last_hidden_state[..., :width]
        return torch.cat([whole, torch.stack(rows, dim=-1).flatten(-2)], dim=-1)

    def grown(self, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """New tokens see the images the last one saw."""
        mask = inputs["cross_attention_mask"]
        more = mask[:, -1:].expand(-1, ids.shape[1] - mask.shape[1], -1, -1)
        return {**super().grown(inputs, ids), "cross_attention_mask": torch.cat([mask, more], 1)}


class TestMllama(MllamaContract):
    def test_state_zero_has_no_stock_form(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        """The list counts block outputs; the delta reads state 0 all the same."""
        with pytest.raises(PlanError, match="cannot name hidden state 0"):
            dcsurgery.convert(tiny_model.folder, tmp_path / "out", layers="0,1", form="stock")
        dcsurgery.convert(tiny_model.folder, tmp_path / "out", connector="sci", layers="0,1")
        assert dcsurgery.verify(tmp_path / "out", logits=True).passed

    def test_config_of_a_fold(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        """Only the two words change, in the raw JSON; outputs are counted from 0."""
        before = json.loads((tiny_model.folder / "config.json").read_text())
        dcsurgery.convert(
            tiny_model.folder, tmp_path / "out", connector="sci", layers="2,4", form="stock"
        )
        after = json.loads((tmp_path / "out" / "config.json").read_text())
        before["vision_config"] |= {
            "intermediate_layers_indices": [0, 1, 2, 3],
            "vision_output_dim": 5 * 16,
        }
        assert after == before
        assert list(after) == list(json.loads((tiny_model.folder / "config.json").read_text()))
        tensor = load(tmp_path / "out").model.multi_modal_projector.weight
        base = load(tiny_model.folder).model.multi_modal_projector.weight
        # Channel d of output j was column 16 + 2 d + j and is now column 16 + 4 d + 2 j.
        assert torch.equal(tensor[:, :16], base[:, :16])
        assert torch.equal(tensor[:, 16::4], base[:, 16::2])
        assert torch.equal(tensor[:, 18::4], base[:, 17::2])
        assert not tensor[:, 17::2].any()

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            ({"intermediate_layers_indices": [0, 4]}, "outside the tower's block outputs 0..3"),
            ({"intermediate_layers_indices": [1]}, "makes it 32"),
            ({"vision_output_dim": 64}, "makes it 48"),
        ],
    )
    def test_contradictory_config_is_refused(
        self, edit: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        folder = write_tiny_mllama(tmp_path / "base")
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"] |= edit
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(AnatomyError, match=message):
            dcsurgery.inspect(folder)

    def test_processor_prepares_several_tiles(self, tiny_model: TinyModel) -> None:
        """Verification has its pictures cut into tiles by the base's own processor."""
        checkpoint = open_checkpoint(tiny_model.folder)
        anatomy = dcsurgery.inspect(tiny_model.folder).anatomy
        pictures = [Image.new("RGB", size, "teal") for size in ((16, 16), (32, 32))]
        inputs = prepare_inputs(checkpoint, anatomy, pictures)
        assert not inputs.note
        assert sorted(inputs.values["aspect_ratio_mask"].sum(-1).flatten().tolist()) == [1, 4]
        with torch.no_grad():
            found = image_features(load(tiny_model.folder), named("mllama"), inputs.values)
        assert len(found) == 2 * anatomy.image_tokens == 2 * TILES * 17


def test_the_hidden_state_goes_by_several_names() -> None:
    """transformers 5.0 to 5.22 call the blocks of this tower with `hidden_state`."""
    state, mask = torch.zeros(1), torch.ones(1)
    assert block_input((), {"hidden_state": state, "attention_mask": mask}) is state
    assert block_input((), {"hidden_states": state, "attention_mask": mask}) is state
    assert block_input((state, mask), {}) is state


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    """Negative indices, one global block, tiles that need no padding; transformers' own names."""
    config = mllama_config(
        layers=(-2, 1, 1), global_depth=1, depth=5, width=24, image_size=21, patch_size=3
    )
    config["vision_config"]["norm_eps"] = 1e-3
    del config["vision_config"]["supported_aspect_ratios"]
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(MllamaContract(), folder, mllama_inputs, tmp_path / "out")
    assert dcsurgery.inspect(folder).anatomy.feature_layers == (4, 2, 2)
