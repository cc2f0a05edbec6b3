"""The parts of Mini-Gemini that are its own: patch-info mining and the projector."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from dcsurgery.modeling.mini_gemini.configuration_mini_gemini import MiniGeminiConfig
from dcsurgery.modeling.mini_gemini.tiles import split_cells


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
