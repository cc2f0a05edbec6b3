"""LLaVA-NeXT and Granite Vision: tiles, several sizes in a batch, a base that reads a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

import dcsurgery
from dcsurgery.architectures import find_architecture
from dcsurgery.connectors.request import Connector
from dcsurgery.data.pictures import sample_photo
from dcsurgery.errors import PlanError
from dcsurgery.tiny.llava import write_llava
from dcsurgery.tiny.llava_next import llava_next_config, write_tiny_llava_next
from tests.architectures.cases import TinyModel, load, make_case
from tests.architectures.contract import StockContract
from tests.architectures.fresh import check_fresh_model
from tests.architectures.published import dissect, llava_shapes
from tests.architectures.tiles import Tiles, pixels, tile_inputs, wide_images, wide_tokens
from tests.closeness import PAPER, assert_near
from tests.surgery import random_matrix, write_delta, write_folded


class TestLlavaNext(Tiles, StockContract):
    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(write_tiny_llava_next(folder, shards=shards), tile_inputs)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return state[:, 1:]


class TestGraniteVision(Tiles, StockContract):
    """SigLIP without CLS, an odd grid, another width, and a list of states already."""

    specs = (Connector("dci", groups=3),)

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        layers = [-7, -5, -3, -1]
        sizes = {"depth": 7, "width": 12, "image_size": 15, "patch_size": 5}
        write_tiny_llava_next(folder, "siglip", feature_layer=layers, shards=shards, **sizes)
        return TinyModel(folder, tile_inputs)


def test_published_configs() -> None:
    """What the files on the Hub say; the rest are defaults of LlavaNextConfig."""
    clip = {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
            "num_hidden_layers": 24, "patch_size": 14}  # fmt: skip
    config: dict[str, Any] = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "text_config": {"model_type": "mistral"},
        "vision_config": clip,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    found = dissect(config, llava_shapes(24, 1024, 4096, 1024))
    assert (found.feature_layers, found.dropped_tokens, found.image_tokens) == ((23,), 1, 576)
    assert found.language_model == "mistral" and not found.variable_resolution
    assert found == dissect(
        {key: config[key] for key in ("architectures", "text_config")},
        llava_shapes(24, 1024, 4096, 1024),
    )
    granite = {
        **config,
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152,
                          "image_size": 384, "num_hidden_layers": 27, "patch_size": 14},
        "vision_feature_layer": [-24, -20, -12, -1],
        "vision_feature_select_strategy": "full",
    }  # fmt: skip
    found = dissect(granite, llava_shapes(27, 1152, 2048, 4 * 1152))
    assert found.feature_layers == (4, 8, 16, 27)
    assert (found.feature_width, found.dropped_tokens, found.image_tokens) == (1152, 0, 729)


@pytest.mark.slow
def test_model_saved_by_transformers(tmp_path: Path) -> None:
    config = llava_next_config("siglip", depth=5, feature_layer=-1)
    check_fresh_model(config, tmp_path, TinyModel(tmp_path, tile_inputs))


def test_pictures_without_a_processor_are_cut_as_it_would(tmp_path: Path) -> None:
    config = {**llava_next_config(), "image_grid_pinpoints": [[48, 32], [16, 32]]}
    base = write_llava(tmp_path / "base", config)
    with Image.open(sample_photo()) as photo:
        picture = photo.convert("RGB").resize((32, 48))
    found = find_architecture(config).preprocess(config, [picture, picture])
    processor = LlavaNextImageProcessorPil(
        image_grid_pinpoints=config["image_grid_pinpoints"],
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = processor(images=[picture, picture], return_tensors="pt")
    assert found.keys() == expected.keys() == {"pixel_values", "image_sizes"}
    for name, value in found.items():
        assert_near(value, expected[name])
    with torch.no_grad():
        lengths = [len(part) for part in load(base).get_image_features(**found).pooler_output]
    assert lengths == [16 + 12 * (8 + 1)] * 2


def test_images_of_different_sizes(tmp_path: Path) -> None:
    """Two tiles padded to four in one batch, and edges that are cut off again."""
    base = write_tiny_llava_next(tmp_path / "base")
    case = make_case(TinyModel(base, tile_inputs), Connector("dci"))
    weight = random_matrix(case.plan)
    write_folded(base, tmp_path / "stock", weight)
    model, stock, plain = case.attached(weight), load(tmp_path / "stock"), load(base)
    inputs = {"pixel_values": pixels(model, 3, 5), "image_sizes": [[16, 32], [30, 31], [20, 12]]}
    inputs["image_sizes"] = torch.tensor(inputs["image_sizes"])
    inputs["pixel_values"][0, 3:] = 0
    with torch.no_grad():
        found, folded, before = (
            item.get_image_features(**inputs).pooler_output for item in (model, stock, plain)
        )
        for index, part in enumerate(found):
            single = {key: value[index : index + 1] for key, value in inputs.items()}
            alone = model.get_image_features(**single).pooler_output[0]
            assert_near(part, alone)
            assert_near(part, folded[index])
            assert part.shape == before[index].shape and not torch.equal(part, before[index])


POOLED = [("clip", 16, 4, -2), ("siglip", 20, 4, [1, -1])]


@pytest.fixture(params=POOLED, ids=lambda param: f"{param[0]}{param[1] // param[2]}")
def pool_base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tower, image, patch, layer = request.param
    sizes = {"image_size": image, "patch_size": patch, "feature_layer": layer}
    return write_tiny_llava_next(tmp_path / "base", tower, **sizes)


def test_pooled_tiles_are_put_together_as_before(pool_base: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(pool_base, tmp_path / "out", pool=2).plan
    plain, model = load(pool_base), dcsurgery.load(tmp_path / "out")
    inputs = wide_images(plain, 1)
    seen: list[Tensor] = []
    projector = plain.model.multi_modal_projector
    projector.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        plain.get_image_features(**inputs)
        found = model.get_image_features(**inputs).pooler_output[0]
    side = plan.anatomy.tower.grid
    maps = seen[0].transpose(1, 2).unflatten(2, (side, side))
    whole, left, right = functional.avg_pool2d(maps, 2).permute(0, 2, 3, 1)
    line = plain.model.image_newline.detach().expand(side // 2, 1, -1)
    rows = torch.cat([left, right, line], dim=1)
    expected = torch.cat([whole.flatten(0, 1), rows.flatten(0, 1)])
    assert_near(found, expected)
    assert len(found) == wide_tokens(side // 2) and plan.image_tokens == (side // 2) ** 2


def test_pool_end_to_end(pool_base: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(pool_base, tmp_path / "zero", pool=2).plan
    write_delta(pool_base, tmp_path / "out", random_matrix(plan), pool=2)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = dcsurgery.load(tmp_path / "out")
    with Image.open(sample_photo()) as photo:
        pictures = [photo.convert("RGB"), photo.convert("RGB").rotate(90, expand=True)]
    texts = ["USER: <image> What is this? <image> And this?", "USER: <image> Who?"]
    images = [pictures, pictures[:1]]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3
    alone = processor(images=pictures[:1], text=texts[1:], return_tensors="pt")
    with torch.no_grad():
        batch, single = model(**inputs).logits[1, -1], model(**alone).logits[0, -1]
    assert_near(batch, single, PAPER)
    before = AutoProcessor.from_pretrained(pool_base)(
        images=pictures[:1], text=texts[1:], return_tensors="pt"
    )
    assert alone["input_ids"].shape[1] < before["input_ids"].shape[1]
    report = dcsurgery.verify(tmp_path / "out", logits=True)
    assert report.passed, report.checks


def test_sti_is_refused(tmp_path: Path) -> None:
    base = write_tiny_llava_next(tmp_path / "base")
    with pytest.raises(PlanError, match="llava_next cannot be told"):
        dcsurgery.convert(base, tmp_path / "out", connector="sti")
    assert not (tmp_path / "out").exists()
