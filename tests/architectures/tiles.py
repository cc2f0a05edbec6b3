"""Inputs of the families that cut images into tiles or read videos, and what is left of both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

import dcsurgery
from dcsurgery.data.pictures import sample_photo
from dcsurgery.verification.restated import restated_connector
from tests.architectures.cases import Case, TinyModel, load, logits
from tests.architectures.contract import Wiring
from tests.closeness import assert_near
from tests.surgery import random_matrix, write_folded

FRAMES = 4


def prompt(batch: int, *runs: tuple[int, int]) -> dict[str, Tensor]:
    """Return `<s>`, runs of (token, count) and five words, for `batch` rows."""
    draw = torch.Generator().manual_seed(11)
    words = torch.randint(40, 200, (batch, 5), generator=draw)
    parts = [torch.full((batch, count), token) for token, count in ((1, 1), *runs)]
    ids = torch.cat([*parts, words], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def grid(model: Any) -> int:
    """Return the patches along one side of a tile."""
    return model.config.vision_config.image_size // model.config.vision_config.patch_size


def pixels(model: Any, *shape: int, seed: int = 12) -> Tensor:
    """Return random pixels [*shape, 3, S, S] in the model's dtype."""
    side = model.config.vision_config.image_size
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, side, side, generator=draw).to(model.dtype)


def wide_images(model: Any, count: int) -> dict[str, Tensor]:
    """Return `count` images of two tiles abreast and their copy."""
    side = model.config.vision_config.image_size
    sizes = torch.tensor([[side, 2 * side]] * count)
    return {"pixel_values": pixels(model, count, 3), "image_sizes": sizes}


def wide_tokens(side: int) -> int:
    """Count the tokens of such an image: the copy, then both tiles and one more per line."""
    return side**2 + side * (2 * side + 1)


def tile_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Return prompts with wide images."""
    run = (model.config.image_token_id, images * wide_tokens(grid(model)))
    return prompt(batch, run) | (wide_images(model, batch * images) if images else {})


def square_inputs(model: Any, batch: int, images: int) -> dict[str, Tensor]:
    """Return prompts with images that are not cut into tiles."""
    kept = getattr(model.config, "vision_feature_select_strategy", "default") == "full"
    ids = prompt(batch, (model.config.image_token_id, images * (grid(model) ** 2 + kept)))
    return ids | ({"pixel_values": pixels(model, batch * images)} if images else {})


def video_tokens(model: Any) -> int:
    """Count the tokens of a video of FRAMES frames, by the rule of its family."""
    side = grid(model)
    counts = {
        "llava_next_video": lambda: FRAMES * (side // model.config.spatial_pool_stride) ** 2,
        "llava_onevision": lambda: FRAMES * math.ceil(side / 2) ** 2 + 1,
        "video_llava": lambda: FRAMES * (side**2 + 1),
    }
    return counts[model.config.model_type]()


def video_inputs(model: Any, batch: int, videos: int) -> dict[str, Tensor]:
    """Return prompts with videos."""
    ids = prompt(batch, (model.config.video_token_id, videos * video_tokens(model)))
    frames = {"pixel_values_videos": pixels(model, batch * videos, FRAMES)} if videos else {}
    return ids | frames


def mixed_inputs(model: Any) -> dict[str, Tensor]:
    """Return one prompt with an image and a video."""
    whole = model.config.model_type == "video_llava"
    count = grid(model) ** 2 if whole else wide_tokens(grid(model))
    image = {"pixel_values": pixels(model, 1)} if whole else wide_images(model, 1)
    runs = (model.config.image_token_id, count), (model.config.video_token_id, video_tokens(model))
    return prompt(1, *runs) | image | {"pixel_values_videos": pixels(model, 1, FRAMES, seed=13)}


class Tiles:
    """Overrides for a contract with `tile_inputs`."""

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tiles = inputs["pixel_values"].flatten(0, 1)
        return tuple(model.model.vision_tower(tiles, output_hidden_states=True).hidden_states)


class Videos(Wiring):
    """The wiring for videos."""

    write: Callable[..., Path]
    video_tower = "vision_tower"

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return TinyModel(cls.write(folder, shards=shards), video_inputs)

    def tower_path(self, case: Case) -> str:
        return self.video_tower

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        frames = inputs["pixel_values_videos"].flatten(0, 1)
        tower = model.model.get_submodule(self.video_tower)
        return tuple(tower(frames, output_hidden_states=True).hidden_states)

    def test_folded_matrix_is_the_attached_one(self, case: Case, tmp_path: Path) -> None:
        weight = random_matrix(case.plan)
        write_folded(case.tiny.folder, tmp_path / "stock", weight, **case.options)
        stock, model = load(tmp_path / "stock"), case.attached(weight)
        for batch, videos in ((1, 1), (2, 1), (1, 2)):
            found = logits(case, stock, batch, videos)
            assert_near(found, logits(case, model, batch, videos))

    def test_restated_connector_is_the_attached_one(self, case: Case, base: Any) -> None:
        """What verification compares with stacks every state of whichever tower ran."""
        weight = random_matrix(case.plan)
        arrange, tensors = case.architecture.arrange, {"weight": weight}
        with restated_connector(base, case.anatomy, case.layout, arrange, tensors):
            expected = logits(case, base)
        assert_near(logits(case, case.attached(weight)), expected)

    def test_images_and_videos_in_one_prompt(self, case: Case, tmp_path: Path) -> None:
        weight = random_matrix(case.plan)
        write_folded(case.tiny.folder, tmp_path / "stock", weight, **case.options)
        stock, model, base = load(tmp_path / "stock"), case.attached(weight), load(case.tiny.folder)
        inputs = mixed_inputs(base)
        with torch.no_grad():
            found = [case.tiny.forward(item, inputs) for item in (model, stock, base)]
            zero = case.tiny.forward(case.attached(), inputs)
        assert_near(found[0], found[1])
        assert (found[0] - found[2]).abs().max() > 0.05
        assert torch.equal(zero, found[2])


def check_counts(processor_class: type, folder: Path) -> None:
    """Generate from a delta as its processor would have it: photos, and videos where it has them.

    The processor's own counting runs on an object made without its constructor, which needs
    torchvision for the video part.
    """
    words = json.loads((folder / "processor_config.json").read_text())
    processor: Any = processor_class.__new__(processor_class)
    vars(processor).update(words, image_processor=AutoImageProcessor.from_pretrained(folder))
    model = dcsurgery.load(folder)
    with Image.open(sample_photo()) as photo:
        picture = photo.convert("RGB")
    for size in ((40, 40), (300, 100), (70, 100)):
        images = processor.image_processor(images=picture.resize(size), return_tensors="pt")
        count = processor.replace_image_token(images, 0).count("<image>")
        _answer(model, (model.config.image_token_id, count), dict(images))
    for frames in (1, FRAMES):
        videos = {"pixel_values_videos": pixels(model, 1, frames)}
        count = processor.replace_video_token(videos, 0).count("<video>")
        _answer(model, (model.config.video_token_id, count), videos)


def _answer(model: Any, run: tuple[int, int], values: dict[str, Tensor]) -> None:
    """Generate; transformers refuses a prompt with another number of tokens than features."""
    inputs = prompt(1, run) | values
    answer = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2
