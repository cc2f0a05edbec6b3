"""The parts of Mini-Gemini that are its own: patch-info mining and the projector."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from dcsurgery.modeling.mini_gemini.configuration_mini_gemini import MiniGeminiConfig


class MiniGeminiNormedLinear(nn.Module):
    """LayerNorm, then a matrix: how mining reads features."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.proj = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.proj(self.norm(features))
        return projected


class MiniGeminiPatchInfoMining(GradientCheckpointingLayer):
    """Attention of each patch token over the part of the high-resolution map at its place.

    Keys and values of the whole map are the largest tensors of the model: with gradient
    checkpointing they are computed again instead of kept.
    """

    def __init__(self, config: MiniGeminiConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        width_aux = sum(config.vision_config_aux.hidden_sizes)
        self.query = MiniGeminiNormedLinear(width, width)
        self.key = MiniGeminiNormedLinear(width_aux, width)
        self.value = MiniGeminiNormedLinear(width_aux, width)

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """Return mined features [B, N, C] of patch tokens [B, N, C] and maps [B, C', h, w].

        Raises ValueError when a patch does not cover a whole number of places of the map.
        """
        cells = split_cells(maps, round(features.shape[1] ** 0.5))
        query = self.query(features).unsqueeze(2)
        key, value = self.key(cells), self.value(cells)
        scores = query @ (key.transpose(-1, -2) / key.shape[-1] ** 0.5)
        # fp16 can overflow here; a softmax of infinities would be NaN.
        found: Tensor = (scores.nan_to_num().softmax(-1) @ value).squeeze(2)
        return found


class MiniGeminiMultiModalProjector(nn.Module):
    """Two matrices from the tower's width to the language model's."""

    def __init__(self, config: MiniGeminiConfig) -> None:
        super().__init__()
        hidden = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, hidden)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return projected


def split_tiles(maps: Tensor, grid: int) -> Tensor:
    """Cut [B, C, grid * h, grid * w] into tiles [B * grid ** 2, C, h, w].

    Tiles of one map follow each other, row by row. Raises ValueError for a map that does not divide
    by the grid.
    """
    if grid == 1:
        return maps
    rows = _split_sides(maps, grid)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def split_cells(maps: Tensor, side: int) -> Tensor:
    """Return the part of a map under every patch: [B, C, side * s, side * s] -> [B, N, s * s, C].

    N = side ** 2 patches, row by row, as are the places inside a patch. Raises ValueError for a map
    that does not divide by the patches.
    """
    rows = _split_sides(maps, side)
    return rows.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)


def _split_sides(maps: Tensor, parts: int) -> Tensor:
    """Return [B, C, parts, h / parts, parts, w / parts]."""
    batch, channels, height, width = maps.shape
    if height % parts or width % parts:
        raise ValueError(
            f"{height} x {width} places do not divide by {parts} x {parts}: use pictures of the "
            "sizes in the model's config"
        )
    return maps.reshape(batch, channels, parts, height // parts, parts, width // parts)
