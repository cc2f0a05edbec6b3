"""The reference implementation's own numbers; see golden/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool1d

import dcsurgery
from dcsurgery.anatomy import Anatomy, Projector, VisionTower
from dcsurgery.connectors import make_layout
from dcsurgery.connectors.request import Connector
from dcsurgery.features import FeatureLayout
from dcsurgery.tiny import llava_config
from dcsurgery.tiny.llava import Tower, write_llava
from tests.architectures.cases import load
from tests.closeness import assert_near
from tests.golden.numbers import TOWERS, check_path, golden
from tests.surgery import write_delta, write_folded

KINDS = ("dci", "sci", "sti")
OPTIONS: dict[str, dict[str, Any]] = {
    "dci": {"connector": "dci"},
    "sci": {"connector": "sci", "layers": "7,15"},
    "sti": {"connector": "sti", "layers": "7,15"},
}


def reference_layout(tower: Tower, kind: str) -> FeatureLayout:
    layers = None if kind == "dci" else ((7, 15),)
    # The reference cuts SigLIP's 27th block off; its feature is our state 26 of 27 blocks.
    depth, layer = (24, 23) if tower == "clip" else (27, 26)
    anatomy = Anatomy(
        architecture="llava",
        tower=VisionTower(tower, "vision_tower", "vision_tower.layers", 8, depth, 0, 4, 1),
        projector=Projector((), ()),
        feature_layers=(layer,),
        feature_width=8,
        dropped_tokens=0,
        image_tokens=16,
        variable_resolution=False,
        language_model="llama",
        dtype="F32",
    )
    return make_layout(anatomy, Connector(kind, layers=layers))


@pytest.mark.parametrize("case", ["clip_p16", "clip_p64", "siglip_p16", "siglip_p25"])
@pytest.mark.parametrize("kind", KINDS)
def test_connector_layouts(kind: str, case: str) -> None:
    tensors, _ = golden(f"dense_connector_{kind}")
    states = tensors[f"{case}.hidden_states"]
    is_clip = case.startswith("clip")
    layout = reference_layout("clip" if is_clip else "siglip", kind)
    patches = states[:, :, 1:] if is_clip else states
    blocks = [patches[list(block.layers)].mean(0) for block in layout.blocks]
    if layout.axis == "token":
        blocks = [avg_pool1d(block.mT, layout.stride).mT for block in blocks]
    dim = 1 if layout.axis == "token" else -1
    joined = torch.cat([tensors[f"{case}.image_features"], *blocks], dim=dim)
    assert_near(joined, tensors[f"{case}.output"], 1e-6)


def golden_config(tower: Tower) -> dict[str, Any]:
    sizes = golden(f"llava_dc_{tower}")[1]["config"]
    config = llava_config(
        tower,
        depth=sizes["layers"],
        width=sizes["hidden"],
        image_size=sizes["image"],
        patch_size=sizes["patch"],
        feature_layer=-2,
    )
    config["vision_config"]["intermediate_size"] = sizes["inter"]
    config["text_config"]["hidden_size"] = sizes["llm"]
    config["text_config"]["num_attention_heads"] = 1
    config["text_config"]["num_key_value_heads"] = 1
    return config


CASES = [(tower, kind) for tower in TOWERS for kind in KINDS]
FOLDABLE = [case for case in CASES if case[1] != "sti"]


@pytest.fixture(params=CASES, ids="-".join)
def path_case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, Tower]:
    """A LLaVA checkpoint with the golden tower and the base part of the golden projector."""
    tower, kind = request.param
    tensors, record = golden(f"llava_dc_{tower}")
    width = record["config"]["hidden"]
    given = {name: value for name, value in tensors.items() if name.startswith("vision_tower.")}
    for ours, theirs in (("linear_1", "0"), ("linear_2", "2")):
        for part in ("weight", "bias"):
            given[f"multi_modal_projector.{ours}.{part}"] = tensors[
                f"{kind}.mm_projector.{theirs}.{part}"
            ]
    first = "multi_modal_projector.linear_1.weight"
    given[first] = given[first][:, :width]
    folder = write_llava(tmp_path / "base", golden_config(tower), tensors=given)
    loaded = load_file(folder / "model.safetensors")
    used = [name for name in given if not name.startswith("vision_tower.vision_model.head.")]
    assert all(torch.equal(loaded[name], given[name]) for name in used)
    return folder, kind, tower


def golden_matrix(tower: Tower, kind: str) -> Tensor:
    tensors, record = golden(f"llava_dc_{tower}")
    return tensors[f"{kind}.mm_projector.0.weight"][:, record["config"]["hidden"] :].contiguous()


def test_image_path_delta(path_case: tuple[Path, str, Tower], tmp_path: Path) -> None:
    folder, kind, tower = path_case
    if kind == "sti":
        dcsurgery.convert(folder, tmp_path / "delta", **OPTIONS[kind])
        check_path(dcsurgery.load(tmp_path / "delta"), tower, kind)
        return
    write_delta(folder, tmp_path / "delta", golden_matrix(tower, kind), **OPTIONS[kind])
    check_path(dcsurgery.load(tmp_path / "delta"), tower, kind)


@pytest.mark.parametrize("path_case", FOLDABLE, ids="-".join, indirect=True)
def test_image_path_stock(path_case: tuple[Path, str, Tower], tmp_path: Path) -> None:
    folder, kind, tower = path_case
    write_folded(folder, tmp_path / "stock", golden_matrix(tower, kind), **OPTIONS[kind])
    check_path(load(tmp_path / "stock"), tower, kind)
