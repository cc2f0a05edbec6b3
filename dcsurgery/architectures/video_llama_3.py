"""VideoLLaMA 3: SigLIP-like tower on packed patches, bilinear merge before the projector."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, Config, Tensors, _packed
from dcsurgery.architectures import _reading as reading

if TYPE_CHECKING:
    from torch import Tensor

SITE = "projector.readout.0"
TOWER = _packed.PackedTower(
    module="vision_model",
    blocks="vision_model.encoder.layers",
    patches="vision_model.embeddings.patch_embedding.weight",
    depth="num_hidden_layers",
    patch_size=16,
    merge=1,
    text="qwen2",
)


def dissect(config: Config, tensors: Tensors) -> Anatomy:
    """Return the anatomy of a VideoLlama3ForConditionalGeneration checkpoint."""
    projector = reading.read_projector(tensors, {SITE: f"{SITE}.weight"}, "projector")
    return _packed.read_anatomy(config, tensors, "video_llama_3", TOWER, projector)


def arrange(run: Any, state: Tensor) -> Tensor:
    """Return one state [N, C] as the merged tokens of every picture, [sum of t h w / m^2, C].

    The tower keeps m x m windows together: each picture is put in raster order and halved (or left
    as it is) by bilinear interpolation. m is given per picture.
    """
    import torch
    from torch.nn import functional

    grids, merges = run.argument("grid_thw", 1), run.argument("merge_sizes", 2)
    merged = []
    parts = torch.split(state, grids.prod(dim=1).tolist())
    for part, (t, h, w), m in zip(parts, grids.tolist(), merges.tolist(), strict=True):
        windows = part.reshape(t, h // m, w // m, m, m, -1).permute(0, 5, 1, 3, 2, 4)
        maps = windows.reshape(t, -1, h, w)
        halved = functional.interpolate(maps, size=(h // m, w // m), mode="bilinear")
        merged.append(halved.permute(0, 2, 3, 1).reshape(-1, state.shape[-1]))
    return torch.cat(merged)


ARCHITECTURE = Architecture(
    name="video_llama_3",
    class_names=("VideoLlama3ForConditionalGeneration",),
    dissect=dissect,
    checkpoints=("lkhl/VideoLLaMA3-2B-Image-HF",),
    towers="VideoLLaMA 3 ViT",
    arrange=arrange,
    preprocess=partial(_packed.pack_squares, processor="VideoLlama3ImageProcessor", words={}),
)
