"""Mini-Gemini: a mined feature, tiles with and without the whole picture, four language models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.connectors.request import Connector
from dcsurgery.modeling import register
from dcsurgery.tiny.mini_gemini import Language, write_tiny_mini_gemini
from tests.architectures.cases import Case, TinyModel
from tests.architectures.contract import Contract
from tests.architectures.inputs import mini_gemini_inputs

Inputs = Callable[[Any, int, int], dict[str, Tensor]]


class MiniGeminiContract(Contract):
    language: Language = "llama"
    grid = 1
    whole = False
    specs = (Connector("dci"),)
    forms = ("delta",)

    @classmethod
    def tiny(cls, folder: Path, shards: int) -> TinyModel:
        register()
        write_tiny_mini_gemini(folder, cls.language, grid=cls.grid, whole=cls.whole, shards=shards)
        return TinyModel(folder, mini_gemini_inputs)

    def states(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Tiles of all images first, then the whole pictures: the model's own order of views."""
        pixels = inputs["pixel_values"].to(model.dtype)
        if pixels.ndim == 5:
            tiles = pixels[:, : self.grid**2].reshape(-1, *pixels.shape[2:])
            pixels = torch.cat([tiles, pixels[:, self.grid**2 :].reshape(-1, *pixels.shape[2:])])
        tower = model.model.vision_tower
        return tuple(tower(pixels, output_hidden_states=True).hidden_states)

    def rows(self, model: Any, state: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Restated with lists: one image after another, its whole picture before its tiles."""
        images, tiles = len(inputs["pixel_values"]), self.grid**2
        ordered = []
        for image in range(images):
            views = [state[image * tiles + tile] for tile in range(tiles)]
            if self.whole:
                views.insert(0, state[images * tiles + image])
            ordered.append(torch.cat([view[1:] for view in views]))
        return torch.stack(ordered)

    def site_input(
        self,
        model: Any,
        case: Case,
        states: tuple[Tensor, ...],
        inputs: dict[str, Tensor],
        site: int,
    ) -> Tensor:
        """The projector reads what mining found on top: mining reads the feature layer alone."""
        (layer,) = case.anatomy.feature_layers
        inner = model.model
        with torch.no_grad():
            maps = inner.encode_high(inputs["pixel_values_aux"])
            mined = inner.mine(states[layer][:, 1:], maps)
        assert mined.abs().max() > 0.05
        whole = torch.cat([states[layer][:, :1], states[layer][:, 1:] + mined], dim=1)
        return self.rows(model, whole, inputs)


class TestLlama(MiniGeminiContract):
    specs = (Connector("sci"),)


class TestGemmaWithTilesAndWhole(MiniGeminiContract):
    language: Language = "gemma"
    grid = 2
    whole = True


class TestMixtralWithTiles(MiniGeminiContract):
    language: Language = "mixtral"
    grid = 2
