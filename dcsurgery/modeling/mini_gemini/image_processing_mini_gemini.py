"""Mini-Gemini's image processor: one picture becomes low-resolution views and a large square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    infer_channel_dimension_format,
    make_flat_list_of_images,
    to_numpy_array,
)

from dcsurgery.modeling.mini_gemini.configuration_mini_gemini import MiniGeminiConfig
from dcsurgery.modeling.mini_gemini.layers_mini_gemini import split_tiles
from dcsurgery.pixels import as_seen, levels


class MiniGeminiImageProcessor(BaseImageProcessor):
    """Prepares pictures as the reference does.

    A picture is padded to a square with the mean colour, resized to `size_aux` pixels (bicubic) and
    normalised: that is `pixel_values_aux`. `pixel_values` is made from it by bilinear
    interpolation: `image_grid` x `image_grid` tiles of `size` pixels, row by row, and with
    `image_global` the whole picture after them. `do_pad` False cuts the middle square out instead.
    """

    model_input_names: ClassVar = ["pixel_values", "pixel_values_aux"]

    def __init__(  # noqa: PLR0913 - one argument per key of preprocessor_config.json
        self,
        size: int = 336,
        size_aux: int = 768,
        image_grid: int = 1,
        image_global: bool = False,
        do_pad: bool = True,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.size_aux = size_aux
        self.image_grid = image_grid
        self.image_global = image_global
        self.do_pad = do_pad
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    @classmethod
    def from_model_config(cls, config: MiniGeminiConfig) -> MiniGeminiImageProcessor:
        """Return the image processor that fits a model."""
        return cls(
            size=config.vision_config.image_size,
            size_aux=config.vision_config_aux.image_size,
            image_grid=config.image_grid,
            image_global=config.image_global,
        )

    @property
    def views(self) -> int:
        """Low-resolution pictures of one image."""
        return int(self.image_grid**2 + self.image_global)

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Prepare one picture or (nested) lists of them; see `preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(
        self, images: Any, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """Return pixel_values [images, views, 3, S, S] and pixel_values_aux [images, 3, S', S'].

        For a grid of one pixel_values is [images, 3, S, S]. Further keywords replace settings of
        the same name.
        """
        settings = {**self.__dict__, **kwargs}
        own = type(self)(**{key: settings[key] for key in self.to_settings()})
        large = torch.stack([own.square(image) for image in make_flat_list_of_images(images)])
        values = {"pixel_values": own.split(large), "pixel_values_aux": large}
        return BatchFeature(values, tensor_type=return_tensors)

    def to_settings(self) -> dict[str, Any]:
        """Return the arguments this processor was made with."""
        names = ("size", "size_aux", "image_grid", "image_global", "do_pad")
        return {name: getattr(self, name) for name in (*names, "image_mean", "image_std")}

    def square(self, image: Any) -> Tensor:
        """Return one picture as a normalised square [3, S', S']."""
        picture = _as_picture(image)
        width, height = picture.size
        side = max(width, height) if self.do_pad else min(width, height)
        if self.do_pad and width != height:
            colour = tuple(int(value * 255) for value in self.image_mean)
            whole = Image.new("RGB", (side, side), colour)
            whole.paste(picture, ((side - width) // 2, (side - height) // 2))
            picture = whole
        scale = self.size_aux / side
        wanted = (int(picture.width * scale), int(picture.height * scale))
        picture = picture.resize(wanted, Image.Resampling.BICUBIC)
        left, top = (wanted[0] - self.size_aux) // 2, (wanted[1] - self.size_aux) // 2
        picture = picture.crop((left, top, left + self.size_aux, top + self.size_aux))
        values = np.asarray(picture, np.float32) * np.float32(1 / 255)
        mean, std = np.asarray(self.image_mean, np.float32), np.asarray(self.image_std, np.float32)
        values = (values - mean) / std
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()

    def split(self, large: Tensor) -> Tensor:
        """Return the low-resolution views of normalised squares [images, 3, S', S']."""
        whole = _resized(large, self.size * self.image_grid)
        if self.image_grid == 1:
            return whole
        tiles = split_tiles(whole, self.image_grid)
        tiles = tiles.reshape(len(large), -1, *tiles.shape[1:])
        if not self.image_global:
            return tiles
        return torch.cat([tiles, _resized(whole, self.size).unsqueeze(1)], dim=1)


def _resized(pictures: Tensor, side: int) -> Tensor:
    return functional.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=False)


def _as_picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return as_seen(image)
    array = levels(to_numpy_array(image))
    if infer_channel_dimension_format(array, num_channels=(1, 3, 4)) == ChannelDimension.FIRST:
        array = np.moveaxis(array, 0, -1)
    array = array[..., 0] if array.shape[-1] == 1 else array
    return as_seen(Image.fromarray(np.ascontiguousarray(array)))
