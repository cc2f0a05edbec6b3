"""The contract for towers that take packed patches: pictures of different grids, one sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

import dcsurgery
from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures._wiring import NOMINAL_GRID
from dcsurgery.connectors.request import Connector
from dcsurgery.data.pictures import open_images
from dcsurgery.verification.models import image_features
from tests.architectures.cases import Case, TinyModel, load, logits, make_case
from tests.architectures.contract import Contract
from tests.architectures.fresh import save_fresh
from tests.closeness import assert_near
from tests.surgery import random_matrix

# (time, height, width) in patches: square, wide, tall.
GRIDS = ((1, 4, 4), (1, 4, 8), (1, 8, 4), (1, 4, 4))
VIDEO = (2, 4, 8)
LENGTH = 60


@dataclass(frozen=True)
class Picture:
    """An image or a video; `merge` x `merge` patches become one token."""

    grid: tuple[int, int, int]
    merge: int
    video: bool = False

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


def packed_forward(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits; tokens that the prompt has grown by are text."""
    types = inputs.get("mm_token_type_ids")
    if types is not None:
        missing = inputs["input_ids"].shape[1] - types.shape[1]
        padded = torch.nn.functional.pad(types, (0, missing))
        inputs = {**inputs, "mm_token_type_ids": padded}
    result: Tensor = model(**inputs).logits
    return result


class PackedContract(Contract):
    """The contract, and what else these families promise: names, sizes, no processor.

    `write` writes the family's tiny checkpoint, `other_sizes` are its keywords for a second one.
    `typed`: the model wants mm_token_type_ids.
    """

    write: ClassVar[Callable[..., Path]]
    other_sizes: ClassVar[dict[str, int]]
    frames_apart = True
    video_token = "video_token_id"
    typed = True

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        return cls.built(cls.write(folder, shards=shards))

    @classmethod
    def built(cls, folder: Path) -> TinyModel:
        return TinyModel(folder, cls.inputs, packed_forward)

    @classmethod
    def tower(cls, model: Any) -> Any:
        return model.model.visual

    @classmethod
    def patch_weight(cls, model: Any) -> Tensor:
        """The patch embedding [C, ...]: one row of pixel_values has as many numbers as the rest."""
        weight: Tensor = cls.tower(model).patch_embed.proj.weight
        return weight

    @classmethod
    def merge(cls, model: Any, index: int) -> int:
        """Merge size of the index-th picture."""
        return int(model.config.vision_config.spatial_merge_size)

    @classmethod
    def inputs(cls, model: Any, batch: int, images: int) -> dict[str, Tensor]:
        """Prompts of LENGTH tokens; each image has another grid and number of tokens."""
        count = batch * images
        pictures = [Picture(GRIDS[index], cls.merge(model, index)) for index in range(count)]
        return cls.prompts(model, [pictures[i * images : (i + 1) * images] for i in range(batch)])

    @classmethod
    def prompts(cls, model: Any, prompts: list[list[Picture]]) -> dict[str, Tensor]:
        """`<s> (start picture end)... words` for each list of pictures, and random patches."""
        draw = torch.Generator().manual_seed(11)
        token = model.config.image_token_id
        rows, kinds = [], []
        for pictures in prompts:
            row = [1]
            for picture in pictures:
                row += cls.picture_tokens(model, picture)
            words = torch.randint(40, 200, (LENGTH - len(row),), generator=draw)
            rows.append([*map(abs, row), *words.tolist()])
            kinds.append([2 if item < 0 else int(item == token) for item in row + [0] * len(words)])
        ids = torch.tensor(rows)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        pictures = [picture for prompt in prompts for picture in prompt]
        if pictures and cls.typed:
            inputs["mm_token_type_ids"] = torch.tensor(kinds)
        for video in (False, True):
            some = [picture for picture in pictures if picture.video is video]
            if some:
                inputs |= cls.packed(model, some)
        return inputs

    @classmethod
    def picture_tokens(cls, model: Any, picture: Picture) -> list[int]:
        """Start, tokens, end; a video's tokens are negative, so that they can be told apart."""
        t, h, w = picture.grid
        tokens = h * w // picture.merge**2
        if not picture.video:
            return [4, *[model.config.image_token_id] * tokens, 5]
        token = -getattr(model.config, cls.video_token)
        runs, length = (t, tokens) if cls.frames_apart else (1, t * tokens)
        return [4, *[token] * length, 5] * runs

    @classmethod
    def packed(cls, model: Any, pictures: list[Picture]) -> dict[str, Tensor]:
        """Random patches and grids, under the names of images or videos."""
        draw = torch.Generator().manual_seed(12)
        count = sum(picture.patches for picture in pictures)
        patches = torch.randn(count, cls.patch_weight(model)[0].numel(), generator=draw)
        patches = patches.to(model.dtype)
        grids = torch.tensor([picture.grid for picture in pictures])
        if pictures[0].video:
            return {"pixel_values_videos": patches, "video_grid_thw": grids}
        return {"pixel_values": patches, "image_grid_thw": grids}

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        output = self.tower(model)(
            inputs["pixel_values"].to(model.dtype),
            grid_thw=inputs["image_grid_thw"],
            output_hidden_states=True,
        )
        return tuple(output.hidden_states)

    def tokens(self, anatomy: Anatomy, inputs: dict[str, Tensor]) -> int:
        return int(inputs["image_grid_thw"].prod(1).sum())

    def one(self, inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        sizes = inputs["image_grid_thw"].prod(1).tolist()
        return {
            key: value.split(sizes if key == "pixel_values" else 1)[index]
            for key, value in inputs.items()
        }

    def projected(self, model: Any) -> Any:
        """The module whose output is image features, alone or as pooler_output."""
        return self.tower(model)

    def features_of(self, model: Any, call: Callable[[], Any]) -> list[Tensor]:
        """Return what every run of the projector gave while `call` ran."""
        found: list[Tensor] = []

        def keep(module: Any, args: Any, output: Any) -> None:
            found.append(getattr(output, "pooler_output", output))

        handle = self.projected(model).register_forward_hook(keep)
        try:
            with torch.no_grad():
                call()
        finally:
            handle.remove()
        return found

    def check_member(self, folder: Path, tmp_path: Path, spec: Connector) -> Case:
        """Run the contract's core on another checkpoint of the family."""
        case = make_case(self.built(folder), spec)
        base = load(folder)
        self.test_anatomy_is_the_loaded_model(case, base)
        self.test_site_reads_the_feature_layer(case, base)
        self.test_random_matrix_is_the_formula(case, base)
        self.test_zero_matrix_is_the_base_bit_for_bit(case, torch.bfloat16)
        self.test_verify_passes_in_every_form(case, tmp_path / "verified")
        return case

    @pytest.mark.slow
    def test_other_sizes(self, tmp_path: Path) -> None:
        """Another depth, width, patch and merge size, in bf16 and two files."""
        folder = self.write(tmp_path / "base", shards=2, dtype="bfloat16", **self.other_sizes)
        case = self.check_member(folder, tmp_path, Connector("dci", groups=3))
        assert case.anatomy.tower.depth == self.other_sizes["depth"]
        assert case.anatomy.tower.width == self.other_sizes["width"]
        assert case.anatomy.tower.patch_size == self.other_sizes["patch_size"]
        assert case.anatomy.tower.grid == self.other_sizes.get("grid", NOMINAL_GRID)

    @pytest.mark.slow
    def test_checkpoint_saved_by_transformers(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        """Names and nested config of save_pretrained, no processor: verify prepares squares."""
        base = load(tiny_model.folder)
        save_fresh(tmp_path / "base", base.config.to_dict())
        case = make_case(self.built(tmp_path / "base"), self.specs[0])
        published = make_case(tiny_model, self.specs[0]).anatomy
        nameless = {"projector": published.projector}
        assert replace(case.anatomy, **nameless) == published
        sites = [site.module for site in published.projector.sites]
        assert [site.module for site in case.anatomy.projector.sites] == sites
        out = tmp_path / "out"
        dcsurgery.convert(tmp_path / "base", out)
        model = dcsurgery.load(out, dtype=torch.float32)
        assert torch.equal(logits(case, model), logits(case, load(tmp_path / "base")))
        report = dcsurgery.verify(out, logits=True)
        assert report.passed, report.checks

    def test_image_tokens_are_counted_right(self, tiny_model: TinyModel) -> None:
        """A picture prepared without a processor has the image tokens the anatomy states, where it
        is as large."""
        case = make_case(tiny_model, self.specs[0])
        tower = case.anatomy.tower
        model = load(tiny_model.folder)
        preprocess = case.architecture.preprocess
        assert preprocess is not None
        inputs = preprocess(model.config.to_dict(), open_images([])[:1])
        patches = int(inputs["image_grid_thw"].prod())
        with torch.no_grad():
            features = image_features(model, case.architecture, inputs)
        assert len(features) * tower.grid**2 == case.anatomy.image_tokens * patches

    def test_published_processor_files(self, tiny_model: TinyModel) -> None:
        """Image processor and tokenizer load without torchvision and prepare two pictures."""
        from transformers import AutoImageProcessor, AutoTokenizer

        model = load(tiny_model.folder)
        processor = AutoImageProcessor.from_pretrained(tiny_model.folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model.folder)
        pictures = [Image.new("RGB", size, "teal") for size in ((40, 24), (24, 56))]
        prepared = processor(images=pictures, return_tensors="pt")
        architecture = make_case(tiny_model, self.specs[0]).architecture
        with torch.no_grad():
            features = image_features(model, architecture, prepared)
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which?"}]
        text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        ids = tokenizer(text)["input_ids"]
        assert ids.count(model.config.image_token_id) == 2
        assert len(features) > 2 and features.isfinite().all()


class VideoContract(PackedContract):
    """What families promise that take videos too.

    `frames_apart`: every frame of a video is a run of tokens of its own. `video_token` is the
    config's name of the token a video is made of.
    """

    def test_video_frames_are_images(self, tiny_model: TinyModel) -> None:
        """The tower sees no time: a video's features are those of its frames as images."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        frames, height, width = VIDEO
        merge = self.merge(model, 0)
        video = self.prompts(model, [[Picture(VIDEO, merge, video=True)]])
        images = self.prompts(model, [[Picture((1, height, width), merge)] * frames])
        assert torch.equal(video["pixel_values_videos"], images["pixel_values"])
        seen = self.features_of(model, lambda: packed_forward(model, video))
        wanted = self.features_of(model, lambda: packed_forward(model, images))
        assert len(seen) == len(wanted) == 1
        assert_near(seen[0], wanted[0])
        with torch.no_grad():
            answer = packed_forward(model, video)
            base = packed_forward(load(tiny_model.folder), video)
            assert (answer - base).abs().max() > 0.05
            assert torch.equal(packed_forward(case.attached(), video), base)

    def test_images_and_videos_in_one_pass(self, tiny_model: TinyModel) -> None:
        """Two runs of the tower in one forward pass: each is what it gives alone."""
        case = make_case(tiny_model, self.specs[0])
        model = case.attached(random_matrix(case.plan))
        image, video = Picture(GRIDS[1], self.merge(model, 1)), Picture(VIDEO, 2, video=True)
        both = self.prompts(model, [[image, video]])
        seen = self.features_of(model, lambda: packed_forward(model, both))
        images, videos = self.packed(model, [image]), self.packed(model, [video])
        alone = self.features_of(model, lambda: model.model.get_image_features(**images))
        alone += self.features_of(model, lambda: model.model.get_video_features(**videos))
        assert len(seen) == len(alone) == 2
        for mixed, single in zip(seen, alone, strict=True):
            assert torch.equal(mixed, single)
        with torch.no_grad():
            base = packed_forward(load(tiny_model.folder), both)
            assert torch.equal(packed_forward(case.attached(), both), base)
            assert (packed_forward(model, both) - base).abs().max() > 0.05
