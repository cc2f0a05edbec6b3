"""A synthetic checkpoint with the names, shapes and shards of llava-hf/llava-1.5-7b-hf."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from dcsurgery.checkpoint.copying import write_all
from dcsurgery.checkpoint.headers import lay_out, render_header

Shapes = list[tuple[str, str, tuple[int, ...]]]

TEXT = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
BLOCK = 16 * 1024 * 1024
SHARD_BYTES = 5_000_000_000
FULL_BYTES = 14_126_854_144
IMAGE_PROCESSOR = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 336},
}


def tower_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield CLIP-L/336: 24 blocks of width 1024, 577 positions."""
    top = "vision_tower.vision_model."
    yield top + "embeddings.class_embedding", (1024,)
    yield top + "embeddings.patch_embedding.weight", (1024, 3, 14, 14)
    yield top + "embeddings.position_embedding.weight", (577, 1024)
    for norm in ("pre_layrnorm", "post_layernorm"):
        yield f"{top}{norm}.weight", (1024,)
        yield f"{top}{norm}.bias", (1024,)
    for index in range(24):
        block = f"{top}encoder.layers.{index}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield f"{block}self_attn.{name}.weight", (1024, 1024)
            yield f"{block}self_attn.{name}.bias", (1024,)
        for name, (out, width) in {"fc1": (4096, 1024), "fc2": (1024, 4096)}.items():
            yield f"{block}mlp.{name}.weight", (out, width)
            yield f"{block}mlp.{name}.bias", (out,)
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{block}{name}.weight", (1024,)
            yield f"{block}{name}.bias", (1024,)


def text_shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a Vicuna-7B of `layers` layers; 32 are the real one."""
    hidden, wide = TEXT["hidden_size"], TEXT["intermediate_size"]
    top = "language_model.model."
    yield top + "embed_tokens.weight", (TEXT["vocab_size"], hidden)
    for index in range(layers):
        layer = f"{top}layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}self_attn.{name}.weight", (hidden, hidden)
        for name in ("gate_proj", "up_proj"):
            yield f"{layer}mlp.{name}.weight", (wide, hidden)
        yield f"{layer}mlp.down_proj.weight", (hidden, wide)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{name}.weight", (hidden,)
    yield top + "norm.weight", (hidden,)
    yield "language_model.lm_head.weight", (TEXT["vocab_size"], hidden)


def projector_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the two-layer projector 1024 -> 4096."""
    for index, width in ((1, 1024), (2, 4096)):
        yield f"multi_modal_projector.linear_{index}.weight", (4096, width)
        yield f"multi_modal_projector.linear_{index}.bias", (4096,)


def layer_count(scale: float) -> int:
    """Language layers of a scaled model."""
    return max(1, round(TEXT["num_hidden_layers"] * scale))


def all_shapes(scale: float) -> Shapes:
    """Return every tensor in the order of the model's modules; 1.0 is 686 tensors, 14.127 GB."""
    layers = layer_count(scale)
    names = [*tower_shapes(), *projector_shapes(), *text_shapes(layers)]
    return [(name, "F16", shape) for name, shape in names]


def split_shards(shapes: Shapes, limit: int) -> list[Shapes]:
    """Split as transformers does: a shard ends before the tensor that would exceed `limit` bytes.

    The true sizes give 4.99, 4.96 and 4.18 GB, the projector in the first.
    """
    shards: list[Shapes] = [[]]
    filled = 0
    for item in shapes:
        nbytes = size_of(item)
        if filled + nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += nbytes
    return shards


def size_of(item: tuple[str, str, tuple[int, ...]]) -> int:
    """Bytes of one fp16 tensor."""
    return 2 * math.prod(item[2])


def write_checkpoint(folder: Path, scale: float = 1.0, *, sparse: bool = False) -> Path:
    """Write the checkpoint and return `folder`: three shards up to scale 1.0, beyond 5 GB each.

    `scale` is the share of the 32 language layers (1.0: 14.1 GB). `sparse` leaves the data as a
    hole: true headers and lengths, no disk.
    """
    folder.mkdir(parents=True)
    shapes = all_shapes(scale)
    total = sum(map(size_of, shapes))
    limit = int(SHARD_BYTES * min(1.0, total / FULL_BYTES))
    shards = split_shards(shapes, limit)
    while scale < 1.0 and len(shards) > 3:
        limit += limit // 50
        shards = split_shards(shapes, limit)
    weight_map = {}
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        # Inside a file safetensors sorts by name (one dtype here).
        _write_shard(folder / file, sorted(shard), index, sparse)
        weight_map.update({name: file for name, _, _ in shard})
    index_json = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(_config(scale), indent=2) + "\n")
    processor = json.dumps(IMAGE_PROCESSOR, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(processor)
    return folder


def _write_shard(path: Path, shapes: Shapes, seed: int, sparse: bool) -> None:
    entries = lay_out(shapes)
    header = render_header(entries, {"format": "pt"})
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(opened, header)
        left = entries[-1].end
        if sparse:
            os.ftruncate(opened, len(header) + left)
            return
        block = _noise(seed)
        while left:
            left -= write_all(opened, memoryview(block)[: min(left, len(block))])
        os.fsync(opened)
    finally:
        os.close(opened)


def _noise(seed: int) -> bytes:
    import numpy as np

    values = np.random.default_rng(seed).standard_normal(BLOCK // 2, dtype=np.float32)
    return (0.02 * values).astype(np.float16).tobytes()


def _config(scale: float) -> dict[str, object]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {"model_type": "llama", **TEXT, "num_hidden_layers": layer_count(scale)},
        "torch_dtype": "float16",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def main() -> None:
    """Write one checkpoint from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--sparse", action="store_true")
    options = parser.parse_args()
    write_checkpoint(options.folder, options.scale, sparse=options.sparse)


if __name__ == "__main__":
    main()
