"""The Mistral 3 layout: packed pictures of different sizes, norm and merger before the site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import dcsurgery
from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.passes import TowerPass
from dcsurgery.errors import AnatomyError
from dcsurgery.tiny.weights import write_weights
from dcsurgery.verification.inputs import prepare_inputs
from dcsurgery.verification.models import image_features
from tests.architectures.cases import Case, TinyModel, load, make_case
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.closeness import assert_near
from tests.surgery import random_matrix
from tests.tiny.mistral3 import mistral3_config, write_tiny_mistral3

LENGTH = 40
# In windows: square, wide, tall, and one that fills the tower's largest picture in one direction.
SHAPES = ((2, 2), (2, 3), (3, 1), (4, 3))
LARGEST = 32


def mistral3_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Prompts of LENGTH tokens `<s> [IMG]... words`, every picture of another size."""
    draw = torch.Generator().manual_seed(11)
    window = model.config.vision_config.patch_size * model.config.spatial_merge_size
    shapes = torch.tensor(SHAPES[: batch * images]).view(batch, images, 2)
    ids = torch.randint(40, 200, (batch, LENGTH), generator=draw)
    ids[:, 0] = 1
    for row, own in zip(ids, shapes, strict=True):
        row[1 : 1 + int(own.prod(-1).sum())] = model.config.image_token_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        inputs |= packed((shapes.flatten(0, 1) * window).tolist(), model.dtype, draw)
    return inputs


def packed(sizes: list[list[int]], dtype: torch.dtype, draw: torch.Generator) -> dict[str, Tensor]:
    """Random pictures of these sizes in pixels, padded to the largest."""
    high, wide = (max(column) for column in zip(*sizes, strict=True))
    pixels = torch.zeros(len(sizes), 3, high, wide)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=draw)
    return {"pixel_values": pixels.to(dtype), "image_sizes": torch.tensor(sizes)}


class LayoutContract(Contract):
    """The three families; they differ in names."""

    def tower(self, model: Any) -> Any:
        return model.model.vision_tower

    def projector(self, model: Any) -> Any:
        return model.model.multi_modal_projector

    def tokens(self, anatomy: Anatomy, inputs: dict[str, Tensor]) -> int:
        return int((inputs["image_sizes"] // anatomy.tower.patch_size).prod(-1).sum())

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            self.tower(model)(
                inputs["pixel_values"].to(model.dtype),
                image_sizes=inputs["image_sizes"],
                output_hidden_states=True,
            ).hidden_states
        )

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The model's own merger, its matrix replaced by nothing."""
        merger = self.projector(model).patch_merger
        matrix, merger.merging_layer = merger.merging_layer, nn.Identity()
        try:
            found: Tensor = merger(state.flatten(0, 1), inputs["image_sizes"])
        finally:
            merger.merging_layer = matrix
        return found

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        return (self.projector(model).norm,)

    def site_input(
        self,
        model: Any,
        case: Case,
        states: tuple[Tensor, ...],
        inputs: dict[str, Tensor],
        site: int,
    ) -> Tensor:
        """The merging matrix stands between the connector's rows and the site's."""
        rows = self.rows(model, states[case.anatomy.feature_layer], inputs)
        with torch.no_grad():
            merged: Tensor = self.projector(model).patch_merger.merging_layer(rows)
        return merged


class TestMistral3(LayoutContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        write_tiny_mistral3(folder, shards=shards, image_size=LARGEST)
        return TinyModel(folder, mistral3_inputs)

    def test_pictures_of_every_size_at_once(self, tiny_model: TinyModel) -> None:
        """Also sizes that do not fill their last windows, as plain image processors leave them."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        sizes = [[16, 16], [20, 28], [20, 12], [32, 20]]
        inputs = packed(sizes, torch.float32, torch.Generator().manual_seed(2))
        run = TowerPass(model, "vision_tower", (), inputs, case.anatomy)
        state = torch.randn(1, sum(h * w // 16 for h, w in sizes), 16)
        arranged = case.architecture.arrange(run, state)[0]
        assert torch.equal(arranged, self.rows(model, state, inputs))
        with torch.no_grad():
            found = model.get_image_features(**inputs).pooler_output
            assert [len(item) for item in found] == [4, 6, 2, 8]
            for index, (height, width) in enumerate(sizes):
                alone = {
                    "pixel_values": inputs["pixel_values"][index : index + 1, :, :height, :width],
                    "image_sizes": inputs["image_sizes"][index : index + 1],
                }
                wanted = model.get_image_features(**alone).pooler_output[0]
                assert_near(found[index], wanted)
            base = load(tiny_model.folder).get_image_features(**inputs).pooler_output
            assert min((a - b).abs().max() for a, b in zip(found, base, strict=True)) > 0.05
            zero = case.attached().get_image_features(**inputs).pooler_output
            assert all(torch.equal(a, b) for a, b in zip(zero, base, strict=True))

    def test_pictures_prepared_by_the_published_processor(self, tiny_model: TinyModel) -> None:
        checkpoint = open_checkpoint(tiny_model.folder)
        anatomy = dcsurgery.inspect(tiny_model.folder).anatomy
        pictures = [Image.new("RGB", size, "teal") for size in ((64, 64), (64, 20))]
        inputs = prepare_inputs(checkpoint, anatomy, pictures)
        assert not inputs.note
        with torch.no_grad():
            found = image_features(load(tiny_model.folder), named("mistral3"), inputs.values)
        # 32 x 32 is 4 x 4 windows; 32 x 12 (10 rounded up to a patch) one row of four.
        assert len(found) == anatomy.image_tokens + 4 == 20

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            ({"vision_feature_layer": [-1, -2]}, "names several layers"),
            ({"spatial_merge_size": 3}, r"is \[16, 64\], the vision tower gives 144"),
            ({"vision_feature_layer": 5}, "outside the tower's states"),
        ],
    )
    def test_contradictory_config_is_refused(
        self, edit: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        folder = write_tiny_mistral3(tmp_path / "base")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **edit}))
        with pytest.raises(AnatomyError, match=message):
            dcsurgery.inspect(folder)

    @pytest.mark.slow
    def test_a_fresh_model_of_other_sizes(self, tmp_path: Path) -> None:
        """Windows of 3 x 3 patches, biases, another layer, named as a list of one."""
        config = mistral3_config(
            spatial_merge_size=3, depth=5, width=24, image_size=36, patch_size=3
        )
        config |= {"vision_feature_layer": [-2], "multimodal_projector_bias": True}
        folder = save_fresh(tmp_path / "base", config)
        check_whole_way(self, folder, mistral3_inputs, tmp_path / "out")
        anatomy = dcsurgery.inspect(folder).anatomy
        assert (anatomy.feature_layer, anatomy.feature_width) == (4, 9 * 24)

    def test_absent_keys_mean_what_the_config_class_says(self, tmp_path: Path) -> None:
        folder = write_tiny_mistral3(tmp_path / "base")
        config = json.loads((folder / "config.json").read_text())
        for key in ("image_size", "patch_size"):
            config["vision_config"].pop(key)
        del config["spatial_merge_size"], config["vision_feature_layer"]
        (folder / "config.json").write_text(json.dumps(config))
        anatomy = dcsurgery.inspect(folder).anatomy
        assert (anatomy.image_tokens, anatomy.feature_layer) == (32 * 32, 4)
        (folder / "config.json").write_text(json.dumps({**config, "vision_config": None}))
        assert dcsurgery.inspect(folder).anatomy.image_tokens == 55 * 55


class TestLightOnOcr(LayoutContract):
    specs = LayoutContract.specs[:1]

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        write_tiny_mistral3(folder, "lighton_ocr", shards=shards, image_size=LARGEST)
        return TinyModel(folder, mistral3_inputs)

    def tower(self, model: Any) -> Any:
        return model.model.vision_encoder

    def projector(self, model: Any) -> Any:
        return model.model.vision_projection

    @pytest.mark.slow
    def test_a_fresh_model_of_other_sizes(self, tmp_path: Path) -> None:
        config = mistral3_config("lighton_ocr", depth=3, width=24, image_size=48, patch_size=6)
        folder = save_fresh(tmp_path / "base", {**config, "tie_word_embeddings": True})
        check_whole_way(self, folder, mistral3_inputs, tmp_path / "out")


@pytest.mark.skipif(
    not hasattr(transformers, "MistralLarge4ForConditionalGeneration"), reason="newer transformers"
)
class TestMistralLarge4(LayoutContract):
    """Published names are those that transformers' save_pretrained restores."""

    specs = LayoutContract.specs[:1]

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        save_fresh(folder, mistral3_config("mistral_large4", image_size=LARGEST))
        if shards > 1:
            tensors = load_file(folder / "model.safetensors")
            (folder / "model.safetensors").unlink()
            write_weights(folder, tensors, shards)
        return TinyModel(folder, mistral3_inputs)

    def test_published_names(self, tiny_model: TinyModel) -> None:
        projector = dcsurgery.inspect(tiny_model.folder).anatomy.projector
        assert projector.sites[0].weight == "vision_language_adapter.w_in.weight"
        assert len(projector.tensors) == 4
        model = load(tiny_model.folder)
        names = dict(model.named_parameters())
        for tensor in projector.tensors:
            assert f"model.{named('mistral_large4').parameter_name(tensor)}" in names
