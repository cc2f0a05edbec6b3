"""What is read from config and headers: whatever the names' prefix, and contradictions refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dcsurgery
from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures._reading import read_projector
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.connectors.attach import find_module
from dcsurgery.errors import AnatomyError
from tests.architectures.cases import load
from tests.architectures.fresh import save_fresh
from tests.tiny.aya_vision import aya_vision_config
from tests.tiny.cohere2_vision import cohere2_vision_config
from tests.tiny.deepseek_vl import (
    deepseek_vl_config,
    deepseek_vl_hybrid_config,
    write_tiny_deepseek_vl,
)
from tests.tiny.gemma3 import gemma3_config
from tests.tiny.idefics3 import idefics3_config
from tests.tiny.internvl import internvl_config
from tests.tiny.janus import janus_config
from tests.tiny.paligemma import paligemma_config
from tests.tiny.qianfan_ocr import qianfan_ocr_config

CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "aya_vision": aya_vision_config,
    "cohere2_vision": cohere2_vision_config,
    "deepseek_vl": deepseek_vl_config,
    "deepseek_vl_hybrid": deepseek_vl_hybrid_config,
    "gemma3": gemma3_config,
    "idefics3": idefics3_config,
    "internvl": internvl_config,
    "janus": janus_config,
    "paligemma": paligemma_config,
    "qianfan_ocr": qianfan_ocr_config,
    "smolvlm": lambda: idefics3_config("smolvlm"),
}


def without_names(anatomy: Anatomy) -> Anatomy:
    """Return an anatomy without the names that tensors have in a file."""
    sites = tuple(replace(site, weight="") for site in anatomy.projector.sites)
    return replace(anatomy, projector=replace(anatomy.projector, sites=sites, tensors=()))


@pytest.mark.parametrize("family", CONFIGS)
def test_the_layout_of_names_does_not_matter(family: str, tmp_path: Path) -> None:
    """Published names, and module names as transformers 4.52 and later know them."""
    config = CONFIGS[family]()
    found = []
    for original in (True, False):
        folder = save_fresh(tmp_path / str(original), config, save_original_format=original)
        found.append(dcsurgery.inspect(folder).anatomy)
    assert found[0].architecture == family
    assert without_names(found[0]) == without_names(found[1])
    model = load(folder)
    names = {name for name, _ in model.named_parameters()}
    assert set(found[1].projector.tensors) <= names
    for site in found[1].projector.sites:
        assert site.weight.startswith("model.") and find_module(model, site.module) is not None


def edit(folder: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> None:
    """Replace a tensor of a folder, or take it out."""
    tensors = load_file(folder / "model.safetensors")
    key = next(key for key in tensors if key.endswith(name))
    value = change(tensors.pop(key))
    if value is not None:
        tensors[key] = value.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN: dict[str, tuple[str, Callable[[Tensor], Tensor | None], str]] = {
    "a matrix that is a number": ("linear1.weight", lambda t: t[0, 0], "not a matrix"),
    "a matrix that is a row": ("linear1.weight", lambda t: t[0], "not a matrix"),
    "a matrix that is a kernel": ("linear1.weight", lambda t: t[..., None, None], "not a matrix"),
    "a matrix that is empty": ("linear1.weight", lambda t: t[:, :0], "is empty"),
    "a matrix that is gone": ("linear1.weight", lambda t: None, "no tensor is named"),
    "a matrix of integers": ("linear1.weight", lambda t: t.to(torch.int8), "quantised"),
    "a matrix of another width": (
        "linear1.weight",
        lambda t: t[:, 1:],
        "reads 15 channels, the vision tower gives 16",
    ),
    "a block of another width": (
        "layers.2.layer_norm1.weight",
        lambda t: t[1:],
        "no common width",
    ),
    "a block without its norm's shape": (
        "layers.0.layer_norm1.weight",
        lambda t: t[None],
        "no common width",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tensors_are_refused(case: str, tmp_path: Path) -> None:
    folder = write_tiny_deepseek_vl(tmp_path / "base")
    name, change, reason = BROKEN[case]
    edit(folder, name, change)
    with pytest.raises(AnatomyError, match=reason):
        dcsurgery.inspect(folder)


OTHER_CONFIGS: dict[str, tuple[str, tuple[str, ...], Any, str]] = {
    "a tower its code cannot drive": (
        "paligemma",
        ("vision_config", "model_type"),
        "clip_vision_model",
        "'clip_vision_model' is not one of siglip_vision_model",
    ),
    "a tower without a name": (
        "paligemma",
        ("vision_config", "model_type"),
        ["siglip_vision_model"],
        "not a name",
    ),
    "another depth": ("gemma3", ("vision_config", "num_hidden_layers"), 5, "tensors say 4"),
    "another width": ("idefics3", ("vision_config", "hidden_size"), 32, "tensors say 16"),
    "patches larger than the image": ("janus", ("vision_config", "patch_size"), 17, "larger"),
    "other channels out of the matrix": (
        "internvl",
        ("text_config", "hidden_size"),
        32,
        "text_config.hidden_size is 32 but .* writes 24",
    ),
    "another projection": ("paligemma", ("projection_dim",), 32, "projection_dim is 32"),
    "another vision projection": (
        "janus",
        ("vision_config", "projection_dim"),
        32,
        "vision_config.projection_dim is 32",
    ),
    "another alignment": (
        "cohere2_vision",
        ("alignment_intermediate_size",),
        32,
        "alignment_intermediate_size is 32",
    ),
}


@pytest.mark.parametrize("case", OTHER_CONFIGS)
def test_a_config_the_tensors_contradict_is_refused(case: str, tmp_path: Path) -> None:
    family, path, value, reason = OTHER_CONFIGS[case]
    folder = save_fresh(tmp_path / "base", CONFIGS[family]())
    config = json.loads((folder / "config.json").read_text())
    table = config
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(AnatomyError, match=reason):
        dcsurgery.inspect(folder)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("GPTQ", ["qweight", "qzeros", "scales", "g_idx"]),
        ("AWQ", ["qweight", "qzeros", "scales"]),
        ("bitsandbytes", ["weight", "weight.absmax", "weight.quant_map"]),
        ("bitsandbytes", ["weight", "SCB"]),
        ("compressed-tensors", ["weight_packed", "weight_scale", "weight_shape"]),
        ("compressed-tensors", ["weight", "weight_scale"]),
        ("MLX", ["weight", "scales", "biases"]),
    ],
)
def test_a_quantised_projector_is_refused_with_its_method(method: str, names: list[str]) -> None:
    entries = [
        TensorEntry(f"model.p.linear_1.{name}", "I32", (2, 2), 16 * at, 16 * at + 16)
        for at, name in enumerate(names)
    ]
    tensors = {entry.name: entry for entry in entries}
    with pytest.raises(AnatomyError, match=f"is quantised by {method}") as caught:
        read_projector(tensors, {"p.linear_1": "p.linear_1.weight"}, "p")
    assert "unquantised" in caught.value.hint
