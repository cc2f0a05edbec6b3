"""What dcsurgery needs to know about a model, read from its config and tensor shapes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionTower:
    """The image encoder.

    `kind` is the config's model type ("clip_vision_model"); `blocks` the dotted module path of its
    list of blocks, as a suffix ("vision_tower.encoder.layers"; an optional "vision_model." inside
    is ignored, older transformers have it); `width` channels C; `depth` number of blocks;
    `prefix_tokens` tokens before the patch tokens (CLS); `image_size` and `patch_size` in pixels.
    """

    kind: str
    blocks: str
    width: int
    depth: int
    prefix_tokens: int
    image_size: int
    patch_size: int

    @property
    def grid(self) -> int:
        """Patches along one side of a square image of `image_size` pixels."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class Projector:
    """The map from tower width to language width.

    `site` is the module path suffix of its first matrix, `weight` the full tensor name of that
    matrix in the checkpoint ([out_features, in_features]), `tensors` every tensor name of the
    projector.
    """

    site: str
    weight: str
    in_features: int
    out_features: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """Tower, projector and the wire between them.

    `feature_layers` are the hidden states the projector reads today, non-negative, in the order in
    which their channels are joined (one entry in most models); `dropped_tokens` leading tokens are
    cut off before the projector; `image_tokens` counts the embeddings of one image (of `image_size`
    pixels square where the tower takes any size); `language_model` is the text config's model type;
    `dtype` the safetensors dtype of the projector.
    """

    architecture: str
    tower: VisionTower
    projector: Projector
    feature_layers: tuple[int, ...]
    dropped_tokens: int
    image_tokens: int
    variable_resolution: bool
    language_model: str
    dtype: str

    @property
    def feature_layer(self) -> int:
        """The deepest hidden state the projector reads today (the paper's V_L)."""
        return max(self.feature_layers)
