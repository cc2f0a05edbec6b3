"""Mini-Gemini's configuration."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

# CLIP-L/336 and CLIP-convnext_large_d_320, the towers of every published model.
_VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
}
_VISION_AUX = {
    "model_type": "convnext",
    "depths": [3, 3, 27, 3],
    "hidden_sizes": [192, 384, 768, 1536],
    "image_size": 768,
}
_TEXT = {"model_type": "llama"}


class MiniGeminiConfig(PreTrainedConfig):
    """Configuration of a Mini-Gemini model.

    `vision_config` is the low-resolution tower (CLIP), `vision_config_aux` the high-resolution one
    (ConvNeXt); its image_size is the side of the square both pictures are made from. `image_grid`
    cuts the low-resolution picture into grid x grid tiles of the tower's size, `image_global` adds
    the whole picture to them. `image_token_id` may lie outside the language model's vocabulary: it
    marks places and is never embedded.
    """

    model_type = "mini_gemini"
    sub_configs: ClassVar = {
        "text_config": AutoConfig,
        "vision_config": AutoConfig,
        "vision_config_aux": AutoConfig,
    }

    def __init__(  # noqa: PLR0913 - one argument per key of config.json
        self,
        vision_config: Any = None,
        vision_config_aux: Any = None,
        text_config: Any = None,
        *,
        image_token_id: int = 32000,
        image_grid: int = 1,
        image_global: bool = False,
        vision_feature_layer: int = -2,
        projector_hidden_act: str = "gelu",
        **kwargs: Any,
    ) -> None:
        self.vision_config = _section(vision_config, _VISION)
        self.vision_config_aux = _section(vision_config_aux, _VISION_AUX)
        # The tower is frozen everywhere: drop path would only make it random while others train.
        self.vision_config_aux.drop_path_rate = 0.0
        self.text_config = _section(text_config, _TEXT)
        self.image_token_id = image_token_id
        self.image_grid = image_grid
        self.image_global = image_global
        self.vision_feature_layer = vision_feature_layer
        self.projector_hidden_act = projector_hidden_act
        if image_grid < 1 or (image_global and image_grid == 1):
            raise ValueError(
                f"image_grid {image_grid} with image_global {image_global} has no meaning: a grid "
                "is 1 or more, and only tiles have a whole picture beside them"
            )
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def views(self) -> int:
        """Pictures of the low-resolution tower that stand for one image: tiles and the whole."""
        return int(self.image_grid**2 + self.image_global)

    @property
    def image_seq_length(self) -> int:
        """Image tokens of one image."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return int(self.views * side**2)


def _section(given: Any, default: dict[str, Any]) -> Any:
    if isinstance(given, PreTrainedConfig):
        return given
    values = dict(default) if given is None else dict(given)
    return AutoConfig.for_model(values.pop("model_type", default["model_type"]), **values)
