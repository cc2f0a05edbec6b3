"""LFM2-VL: padded pictures of any shape, the projector called once per picture."""

from __future__ import annotations

import json
from importlib.util import find_spec
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
from dcsurgery.connectors.attach import find_module
from dcsurgery.data.pictures import open_images
from dcsurgery.errors import AnatomyError, RequestError
from dcsurgery.verification.inputs import NO_TORCHVISION, prepare_inputs
from dcsurgery.verification.models import image_features
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.contract import Contract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.closeness import assert_near
from tests.surgery import random_matrix, write_delta
from tests.tiny.lfm2_vl import lfm2_vl_config, write_tiny_lfm2_vl

LENGTH = 40
# In windows: square, wide, tall, longer than the tower's nominal picture.
SHAPES = ((2, 2), (2, 3), (3, 1), (4, 3))
PADDING = 3
VISION = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


def lfm2_vl_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Prompts of LENGTH tokens `<s> <image>... words`, every picture of another shape."""
    draw = torch.Generator().manual_seed(11)
    shapes = torch.tensor(SHAPES[: batch * images]).view(batch, images, 2)
    ids = torch.randint(40, 200, (batch, LENGTH), generator=draw)
    ids[:, 0] = 1
    for row, own in zip(ids, shapes, strict=True):
        row[1 : 1 + int(own.prod(-1).sum())] = model.config.image_token_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        factor = model.config.downsample_factor
        inputs |= padded(model, shapes.flatten(0, 1) * factor, draw)
    return inputs


def padded(model: Any, shapes: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """Random patches for pictures of these shapes [n, 2], all padded beyond the longest."""
    lengths = shapes.prod(-1)
    mask = torch.arange(int(lengths.max()) + PADDING) < lengths[:, None]
    values = 3 * model.config.vision_config.patch_size**2
    patches = torch.randn(*mask.shape, values, generator=draw)
    return {
        "pixel_values": patches.to(model.dtype),
        "pixel_attention_mask": mask.long(),
        "spatial_shapes": shapes,
    }


class Lfm2VlContract(Contract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_lfm2_vl(folder, shards=shards), lfm2_vl_inputs)

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        own = {key: inputs[key] for key in VISION}
        return tuple(model.model.vision_tower(**own, output_hidden_states=True).hidden_states)

    def tokens(self, anatomy: Anatomy, inputs: dict[str, Tensor]) -> int:
        return int(inputs["pixel_values"].shape[1])

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
        """The projector's own shuffle on what the mask leaves of every picture."""
        unshuffle = model.model.multi_modal_projector.pixel_unshuffle
        return [
            unshuffle(picture[mask.bool()].reshape(1, *shape.tolist(), -1))
            for picture, mask, shape in zip(
                state, inputs["pixel_attention_mask"], inputs["spatial_shapes"], strict=True
            )
        ]

    def loud_norms(self, model: Any) -> tuple[nn.Module, ...]:
        norm = model.model.multi_modal_projector.layer_norm
        last = find_module(model, "vision_tower.post_layernorm")
        return (last, *([norm] if norm is not None else []))


class TestLfm2Vl(Lfm2VlContract):
    def test_pictures_of_every_shape_at_once(self, tiny_model: TinyModel) -> None:
        """Four calls of the projector in one pass, each with its own picture's rows."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        base = load(tiny_model.folder)
        inputs = padded(model, 2 * torch.tensor(SHAPES), torch.Generator().manual_seed(2))
        with torch.no_grad():
            found = model.get_image_features(**inputs).pooler_output
            assert [len(item) for item in found] == [4, 6, 3, 12]
            for index, features in enumerate(found):
                one = {key: value[index : index + 1] for key, value in inputs.items()}
                with self.restated_on(case, base, one):
                    wanted = base.get_image_features(**one).pooler_output[0]
                assert_near(features, wanted)
                plain = base.get_image_features(**one).pooler_output[0]
                assert (features - plain).abs().max() > 0.05

    def restated_on(self, case: Any, base: Any, one: dict[str, Tensor]) -> Any:
        """The contract's restatement of the formula for inputs of our own."""
        tiny = TinyModel(case.tiny.folder, lambda model, batch, images: one)
        own = make_case(tiny, case.spec)
        return self.restated(own, base, random_matrix(case.plan))

    def test_one_call_too_many_is_refused(self, tiny_model: TinyModel) -> None:
        case = make_case(tiny_model, self.specs[0])
        model = case.attached()
        inputs = padded(model, torch.tensor([[4, 4], [4, 2]]), torch.Generator().manual_seed(2))
        with torch.no_grad():
            model.get_image_features(**inputs)
            with pytest.raises(RequestError, match="without the vision tower"):
                model.model.multi_modal_projector(torch.zeros(1, 4, 4, 16))

    def test_pictures_in_another_order_are_refused(self, tiny_model: TinyModel) -> None:
        """The projector must be called for the tower's pictures one after another."""
        model = make_case(tiny_model, self.specs[0]).attached()
        inputs = padded(model, torch.tensor([[4, 4], [4, 2]]), torch.Generator().manual_seed(2))
        with torch.no_grad():
            states = model.model.vision_tower(**inputs).last_hidden_state
            with pytest.raises(RequestError, match="read 2 tokens but the vision tower gave 4"):
                model.model.multi_modal_projector(states[1, :8].reshape(1, 4, 2, 16))

    def test_verify_without_torchvision(self, tiny_model: TinyModel) -> None:
        checkpoint = open_checkpoint(tiny_model.folder)
        anatomy = dcsurgery.inspect(tiny_model.folder).anatomy
        inputs = prepare_inputs(checkpoint, anatomy, open_images([]))
        assert (inputs.note == NO_TORCHVISION) == (find_spec("torchvision") is None)
        with torch.no_grad():
            found = image_features(load(tiny_model.folder), named("lfm2_vl"), inputs.values)
        assert len(found) == anatomy.image_tokens

    def test_verify_compares_every_call(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        """Two pictures are two calls of the projector, here and in the restated formula."""
        case = make_case(tiny_model, self.specs[0])
        write_delta(tiny_model.folder, tmp_path / "out", random_matrix(case.plan))
        for turn in (0, 90):
            Image.linear_gradient("L").rotate(turn).save(tmp_path / f"{turn}.png")
        pictures = [tmp_path / "0.png", tmp_path / "90.png"]
        report = dcsurgery.verify(tmp_path / "out", images=pictures)
        assert report.passed, report.checks

    def test_another_factor_contradicts_the_matrix(self, tmp_path: Path) -> None:
        folder = write_tiny_lfm2_vl(tmp_path / "base")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "downsample_factor": 4}))
        with pytest.raises(AnatomyError, match=r"reads 64 channels.* 256 \(4 x 4 patches of 16"):
            dcsurgery.inspect(folder)


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    """No norm before the matrix, windows of 3 x 3 patches, a grid they do not fill."""
    config = lfm2_vl_config(
        factor=3, layernorm=False, depth=3, width=24, image_size=28, patch_size=4
    )
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(Lfm2VlContract(), folder, lfm2_vl_inputs, tmp_path / "out")
    anatomy = dcsurgery.inspect(folder).anatomy
    assert (anatomy.image_tokens, anatomy.feature_width) == (4, 9 * 24)


def test_absent_keys_mean_what_the_config_classes_say(tmp_path: Path) -> None:
    folder = write_tiny_lfm2_vl(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    for key in ("num_patches", "patch_size"):
        config["vision_config"].pop(key)
    del config["downsample_factor"]
    (folder / "config.json").write_text(json.dumps(config))
    anatomy = dcsurgery.inspect(folder).anatomy
    assert (anatomy.tower.image_size, anatomy.image_tokens) == (256, 64)
