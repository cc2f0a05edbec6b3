"""Molmo2: three matrices that read windows of patches, crops, videos, two spellings of a config."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import dcsurgery
from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.data.pictures import open_images
from dcsurgery.errors import AnatomyError
from dcsurgery.verification.inputs import NO_TORCHVISION, prepare_inputs
from dcsurgery.verification.models import image_features
from tests.architectures.cases import TinyModel, load, logits, make_case
from tests.architectures.contract import StockContract
from tests.architectures.fresh import check_whole_way, save_fresh
from tests.closeness import assert_near
from tests.surgery import random_matrix
from tests.tiny.molmo2 import molmo2_config, write_tiny_molmo2

LENGTH = 48

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "Molmo2ForConditionalGeneration"), reason="transformers >= 5.20"
)


def window_numbers(grid: int, first: int) -> Tensor:
    """Patch numbers of every 2 x 2 window [rows^2, 4], -1 beyond the edge of an odd grid."""
    rows = -(-grid // 2)
    numbers = []
    for top in range(rows):
        for left in range(rows):
            cells = [(2 * top + i, 2 * left + j) for i in (0, 1) for j in (0, 1)]
            numbers.append(
                [first + y * grid + x if y < grid and x < grid else -1 for y, x in cells]
            )
    return torch.tensor(numbers)


def pictures(model: Any, crops: list[int], draw: torch.Generator) -> dict[str, Tensor]:
    """Random patches of pictures that are seen whole and in `crops` crops each."""
    vision = model.config.vision_config
    patch = vision.patch_size
    grid = vision.image_size[0] // patch
    rows = -(-grid // 2)
    total = sum(1 + count for count in crops)
    patches = torch.randn(total, grid**2, 3 * patch**2, generator=draw)
    windows = [window_numbers(grid, index * grid**2) for index in range(total)]
    grids = [[rows, rows, count * rows, rows] if count else [rows, rows, 0, 0] for count in crops]
    return {
        "pixel_values": patches.to(model.dtype),
        "image_token_pooling": torch.cat(windows),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor(crops) + 1,
    }


def molmo2_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Prompts of LENGTH tokens; every other picture has a crop beside the whole."""
    draw = torch.Generator().manual_seed(11)
    words = torch.randint(40, 200, (batch, LENGTH), generator=draw)
    words[:, 0] = 1
    inputs = {}
    if images:
        crops = [(index + 1) % 2 for index in range(batch * images)]
        inputs = pictures(model, crops, draw)
        rows = int(inputs["image_grids"][0, 0])
        for row, own in enumerate(torch.tensor(crops).view(batch, images)):
            words[row, 1 : 1 + rows**2 * int((own + 1).sum())] = model.config.image_token_id
    seen = (words == model.config.image_token_id).long()
    return {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "mm_token_type_ids": seen,
        **inputs,
    }


class Molmo2Contract(StockContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_molmo2(folder, shards=shards), molmo2_inputs)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Window by window; a patch that is not there counts as zeros and not in the mean."""
        flat = state.reshape(-1, state.shape[-1])
        means, windows = [], []
        for window in inputs["image_token_pooling"].tolist():
            zero = torch.zeros_like(flat[0])
            windows.append(torch.stack([zero if i < 0 else flat[i] for i in window]))
            present = [flat[i] for i in window if i >= 0]
            means.append(
                torch.stack([*present, zero][: max(1, len(present))]).sum(0) / len(present)
            )
        stacked = torch.stack(windows)
        return torch.stack(means)[:, None], stacked, stacked

    def one(self, inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        sizes = inputs["image_num_crops"].tolist()
        found = {}
        for key, value in inputs.items():
            parts: Any = 1
            if key == "pixel_values":
                parts = sizes
            elif key == "image_token_pooling":
                parts = [size * int(inputs["image_grids"][0, 0]) ** 2 for size in sizes]
            found[key] = value.split(parts)[index]
        before = sum(sizes[:index]) * inputs["pixel_values"].shape[1]
        numbers = found["image_token_pooling"]
        found["image_token_pooling"] = torch.where(numbers < 0, numbers, numbers - before)
        return found

    def grown(self, inputs: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
        """Generated tokens are text."""
        more = ids.shape[1] - inputs["mm_token_type_ids"].shape[1]
        types = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, more))
        return {**super().grown(inputs, ids), "mm_token_type_ids": types}


class TestMolmo2(Molmo2Contract):
    def test_published_words(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        """Layers from the end of blocks that are not there; a fold writes them from the start."""
        before = json.loads((tiny_model.folder / "config.json").read_text())
        assert before["adapter_config"]["vit_layers"] == [-3, -5]
        assert before["vit_config"]["num_hidden_layers"] == 6
        anatomy = dcsurgery.inspect(tiny_model.folder).anatomy
        assert (anatomy.tower.depth, anatomy.feature_layers) == (4, (4, 2))
        dcsurgery.convert(tiny_model.folder, tmp_path / "out", form="stock")
        after = json.loads((tmp_path / "out" / "config.json").read_text())
        before["adapter_config"]["vit_layers"] = [0, 1, 2, 3]
        assert after == before
        self.check_columns(tiny_model.folder, tmp_path / "out")

    def test_words_of_transformers(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        folder = save_fresh(tmp_path / "base", molmo2_config())
        before = json.loads((folder / "config.json").read_text())
        assert before["adapter_config"]["vision_feature_layer"] == [3, 1]
        dcsurgery.convert(folder, tmp_path / "out", connector="sci", layers="1", form="stock")
        after = json.loads((tmp_path / "out" / "config.json").read_text())
        before["adapter_config"]["vision_feature_layer"] = [0, 1, 3]
        assert after == before

    def check_columns(self, base: Path, folded: Path) -> None:
        """The base's columns [block 3, block 1] among those of blocks 0 to 3."""
        pair = [load(folder).model.multi_modal_projector for folder in (base, folded)]
        for name in ("q_proj", "k_proj", "v_proj"):
            old, new = (getattr(item.image_pooling_2d, name).weight for item in pair)
            assert torch.equal(new[:, 48:], old[:, :16])
            assert torch.equal(new[:, 16:32], old[:, 16:])
            assert not new[:, :16].any() and not new[:, 32:48].any()

    @pytest.mark.parametrize(
        ("layers", "message"),
        [([-4, -5], "needs 3 blocks, found 4"), ([3, 1, 0], "not 3 x 16"), ([6, 1], "outside")],
    )
    def test_contradictory_config_is_refused(
        self, layers: list[int], message: str, tmp_path: Path
    ) -> None:
        folder = write_tiny_molmo2(tmp_path / "base")
        config = json.loads((folder / "config.json").read_text())
        config["adapter_config"]["vit_layers"] = layers
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(AnatomyError, match=message):
            dcsurgery.inspect(folder)

    def test_video_frames_are_whole_pictures(self, tiny_model: TinyModel) -> None:
        case = make_case(tiny_model, self.specs[0])
        model, base = case.attached(random_matrix(case.plan)), load(tiny_model.folder)
        images = pictures(model, [0, 0], torch.Generator().manual_seed(5))
        rows = int(images["image_grids"][0, 0])
        video = {
            "pixel_values_videos": images["pixel_values"],
            "video_token_pooling": images["image_token_pooling"],
            "video_grids": torch.tensor([[2, rows, rows]]),
        }
        with torch.no_grad():
            found = model.get_video_features(**video).pooler_output[0]
            images.pop("image_num_crops")
            wanted = torch.cat(model.get_image_features(**images).pooler_output)
            assert torch.equal(found, wanted)
            plain = base.get_video_features(**video).pooler_output[0]
            assert (found - plain).abs().max() > 0.05
            zero = case.attached().get_video_features(**video).pooler_output[0]
            assert torch.equal(zero, plain)
            ids = torch.full((1, LENGTH), 50)
            ids[:, : len(found)] = model.config.video_token_id
            assert (
                model(input_ids=ids, **video).logits - base(input_ids=ids, **video).logits
            ).any()

    def test_windows_without_any_patch(self, tiny_model: TinyModel) -> None:
        """Padding windows give no token and no NaN."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        images = pictures(model, [0], torch.Generator().manual_seed(5))
        images.pop("image_num_crops")
        with torch.no_grad():
            wanted = model.get_image_features(**images).pooler_output[0]
            padding = torch.full((2, 4), -1)
            images["image_token_pooling"] = torch.cat([images["image_token_pooling"], padding])
            found = model.get_image_features(**images).pooler_output[0]
        assert_near(found, wanted)

    def test_verify_without_torchvision(self, tiny_model: TinyModel) -> None:
        """The published image processor needs it; the repository's own code is never run."""
        checkpoint = open_checkpoint(tiny_model.folder)
        anatomy = dcsurgery.inspect(tiny_model.folder).anatomy
        inputs = prepare_inputs(checkpoint, anatomy, open_images([]))
        assert (inputs.note == NO_TORCHVISION) == (find_spec("torchvision") is None)
        with torch.no_grad():
            found = image_features(load(tiny_model.folder), named("molmo2"), inputs.values)
        assert len(found) == anatomy.image_tokens


@pytest.mark.slow
def test_a_fresh_model_of_other_sizes(tmp_path: Path) -> None:
    """Blocks behind the deepest layer listed, a layer listed twice, an even grid."""
    config = molmo2_config(layers=(-2, 0, 3), depth=5, width=24, image_size=18, patch_size=3)
    folder = save_fresh(tmp_path / "base", config)
    check_whole_way(Molmo2Contract(), folder, molmo2_inputs, tmp_path / "out")
    anatomy = dcsurgery.inspect(folder).anatomy
    assert (anatomy.feature_layers, anatomy.image_tokens) == ((4, 1, 4), 18)


def test_prepared_squares_are_what_the_image_processor_gives(tmp_path: Path) -> None:
    """Patches row by row, channels last, windows in reading order; the picture twice."""
    preprocess = named("molmo2").preprocess
    assert preprocess is not None
    config = molmo2_config(image_size=20, patch_size=4)
    picture = Image.linear_gradient("L").resize((20, 20)).convert("RGB")
    found = preprocess(config, [picture, picture])
    assert found["pixel_values"].shape == (4, 25, 48)
    pixel = found["pixel_values"][0, 7].view(4, 4, 3)[2, 3]
    wanted = torch.tensor(picture.getpixel((2 * 4 + 3, 1 * 4 + 2))) / 127.5 - 1
    assert torch.allclose(pixel, wanted)
    windows = torch.cat([window_numbers(5, 25 * index) for index in range(4)])
    assert torch.equal(found["image_token_pooling"], windows)
    assert found["image_grids"].tolist() == [[3, 3, 3, 3]] * 2


def test_image_tokens(tmp_path: Path) -> None:
    """allenai/Molmo2-8B: 27 x 27 patches are 14 x 14 windows, seen whole and as one crop."""
    folder = write_tiny_molmo2(tmp_path / "base", image_size=27, patch_size=1)
    case = make_case(TinyModel(folder, molmo2_inputs), Molmo2Contract.specs[0])
    assert case.anatomy.image_tokens == 2 * 14 * 14
    assert logits(case, load(folder), 1, 0).isfinite().all()
