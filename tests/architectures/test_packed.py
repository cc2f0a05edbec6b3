"""Configs that contradict the tensors of a tower with packed patches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dcsurgery
from dcsurgery.errors import AnatomyError
from dcsurgery.surgery.inspection import inspect_checkpoint
from tests.tiny.glm4v import write_tiny_glm4v
from tests.tiny.lfm3_vl import write_tiny_lfm3_vl
from tests.tiny.qwen2_vl import write_tiny_qwen2_vl
from tests.tiny.qwen3_vl import write_tiny_qwen3_vl
from tests.tiny.video_llama_3 import write_tiny_video_llama_3


@pytest.mark.parametrize(
    ("write", "key", "value", "message"),
    [
        (write_tiny_qwen2_vl, "patch_size", 14, "patch_size is 14 but"),
        (
            write_tiny_qwen2_vl,
            "spatial_merge_size",
            1,
            "reads 64 channels, the vision tower gives 16",
        ),
        (write_tiny_qwen2_vl, "embed_dim", 24, "vision_config.embed_dim is 24"),
        (write_tiny_qwen2_vl, "depth", 3, "vision_config.depth is 3"),
        (write_tiny_qwen3_vl, "hidden_size", 24, "vision_config.hidden_size is 24"),
        (write_tiny_glm4v, "spatial_merge_size", "2", "spatial_merge_size in config.json is"),
        (write_tiny_video_llama_3, "num_hidden_layers", 5, "num_hidden_layers is 5"),
    ],
)
def test_contradictions_are_named(
    write: Callable[..., Path], key: str, value: Any, message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match=message):
        inspect_checkpoint(folder)


def test_sizes_the_config_leaves_out_are_the_family_s_own(tmp_path: Path) -> None:
    """A published config is a diff: patch 14 and 2 x 2 patches need not be stated."""
    folder = write_tiny_qwen2_vl(tmp_path / "base", patch_size=14)
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]["patch_size"], config["vision_config"]["spatial_merge_size"]
    (folder / "config.json").write_text(json.dumps(config))
    anatomy = inspect_checkpoint(folder).anatomy
    assert (anatomy.tower.patch_size, anatomy.feature_width) == (14, 4 * anatomy.tower.width)
    assert anatomy.image_tokens == 256


def test_positions_must_be_a_square(tmp_path: Path) -> None:
    from dcsurgery.tiny.weights import write_model

    folder = write_tiny_qwen3_vl(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_position_embeddings"] = 15
    write_model(folder, config["architectures"][0], config)
    with pytest.raises(AnatomyError, match="not a square grid of positions"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    "write", [write_tiny_lfm3_vl, write_tiny_qwen3_vl, write_tiny_video_llama_3]
)
def test_a_patch_size_that_the_config_leaves_out_is_its_class_s(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    base = write(tmp_path / "base", patch_size=16)
    config = json.loads((base / "config.json").read_text())
    assert config["vision_config"].pop("patch_size") == 16
    (base / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "processor_config.json"):
        (base / name).unlink(missing_ok=True)
    dcsurgery.convert(base, tmp_path / "out")
    report = dcsurgery.verify(tmp_path / "out")
    assert report.passed and "the base has no processor" in str(report)
