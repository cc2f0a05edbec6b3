"""A true-size llava-v1.5-13b in its original format, without data: does memory stay flat?

`python -m tests.benchmarks.original` plans and converts it (26 GB as holes in files, the tower in a
folder of its own) and prints seconds and peak memory. `--stock` also writes the stock form: 27 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dcsurgery.checkpoint.copying import write_all
from dcsurgery.checkpoint.headers import lay_out, render_header
from tests.benchmarks.measure import Run, measure
from tests.benchmarks.synthetic import SHARD_BYTES, Shapes, size_of, split_shards, tower_shapes

TOWER_NAME = "openai/clip-vit-large-patch14-336"
TEXT = {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
}  # fmt: skip
# llava-v1.5-13b: 13,015,864,320 of Vicuna-13B and 31,467,520 of the projector.
PARAMETERS = 13_047_331_840
LIMIT = 250e6


def original_shapes(layers: int) -> Shapes:
    """Return the tensors of liuhaotian/llava-v1.5-13b with `layers` of its 40 language layers."""
    hidden, wide = TEXT["hidden_size"], TEXT["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (TEXT["vocab_size"], hidden)}
    for index in range(layers):
        layer = f"model.layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{layer}self_attn.{name}.weight"] = (hidden, hidden)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}mlp.{name}.weight"] = (wide, hidden)
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, wide)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{name}.weight"] = (hidden,)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (TEXT["vocab_size"], hidden)}
    for index, width in ((0, 1024), (2, hidden)):
        shapes[f"model.mm_projector.{index}.weight"] = (hidden, width)
        shapes[f"model.mm_projector.{index}.bias"] = (hidden,)
    return [(name, "F16", shape) for name, shape in shapes.items()]


def write_sparse(folder: Path, shapes: Shapes, config: dict[str, object]) -> Path:
    """Write a checkpoint whose data is a hole: true headers and lengths, no disk."""
    folder.mkdir(parents=True)
    shards = split_shards(shapes, SHARD_BYTES)
    mapping = {}
    for index, shard in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        entries = lay_out(shard)
        header = render_header(entries, {"format": "pt"})
        opened = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_all(opened, header)
            os.ftruncate(opened, len(header) + entries[-1].end)
        finally:
            os.close(opened)
        mapping |= {name: file for name, _, _ in shard}
    if len(shards) > 1:
        index_json = {"metadata": {"total_size": sum(map(size_of, shapes))}, "weight_map": mapping}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def write_original(folder: Path, layers: int = 40) -> tuple[Path, Path]:
    """Write the original and its tower; return both folders."""
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        **TEXT,
        "num_hidden_layers": layers,
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER_NAME,
        "torch_dtype": "float16",
    }
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
        "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 14,
    }  # fmt: skip
    tower: Shapes = [(name.partition(".")[2], "F32", shape) for name, shape in tower_shapes()]
    model = write_sparse(folder / "llava-v1.5-13b", original_shapes(layers), config)
    return model, write_sparse(
        folder / "clip", tower, {"model_type": "clip", "vision_config": vision}
    )


def convert(model: Path, tower: Path, *options: str) -> Run:
    """Run `dcsurgery convert` on it in a process of its own."""
    command = [sys.executable, "-m", "dcsurgery", "convert", str(model)]
    return measure([*command, "--tower", f"{TOWER_NAME}={tower}", *options])


def run_all(folder: Path, layers: int, forms: Sequence[str]) -> dict[str, Run]:
    """Return one run per form, and one of the plan alone."""
    model, tower = write_original(folder, layers)
    runs = {"plan": convert(model, tower, "--dry-run", "--form", "stock")}
    for form in forms:
        runs[form] = convert(model, tower, "--form", form, "-o", str(folder / form))
    return runs


def main() -> None:
    """Print what converting the model costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=40, help="language layers, of 40")
    parser.add_argument("--stock", action="store_true", help="write the stock form too (27 GB)")
    options = parser.parse_args()
    forms = ["delta", *(["stock"] if options.stock else [])]
    with tempfile.TemporaryDirectory() as folder:
        for name, run in run_all(Path(folder), options.layers, forms).items():
            print(
                f"{name}: {run.seconds:.2f} s, peak memory {run.peak_rss / 1e6:.0f} MB, "
                f"{run.written / 1e6:.0f} MB written"
            )


if __name__ == "__main__":
    main()
