"""Originals that cannot be adopted: said clearly, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dcsurgery
from dcsurgery.errors import (
    AnatomyError,
    CheckpointNotFoundError,
    DcSurgeryError,
    MalformedCheckpointError,
    PlanError,
    RequestError,
    UnknownArchitectureError,
    UnsafeFormatError,
)
from dcsurgery.surgery.base_model import open_base
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower

SIZES = OriginalSizes(depth=4)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("tower") / "my-clip", SIZES)


def refused(model: Path, kind: type[DcSurgeryError], **options: Any) -> DcSurgeryError:
    """Convert and inspect; both must refuse alike and leave nothing behind."""
    output = model.parent / "out"
    for call in (
        lambda: dcsurgery.convert(model, output, form="stock", **options),
        lambda: dcsurgery.inspect(model, **options),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.hint
    assert not output.exists() and not output.with_name("out.partial").exists()
    return caught.value


def edit(folder: Path, **config: Any) -> Path:
    path = folder / "config.json"
    stated = json.loads(path.read_bytes()) | config
    path.write_text(json.dumps({key: value for key, value in stated.items() if value != "DROP"}))
    return folder


CONTRADICTIONS: dict[str, tuple[dict[str, Any], type[DcSurgeryError], str]] = {
    "rows": ({"vocab_size": 319}, AnatomyError, "vocab_size in config.json is 319, the tensors"),
    "width": ({"hidden_size": 48}, AnatomyError, "hidden_size"),
    "layers": ({"num_hidden_layers": 3}, AnatomyError, "num_hidden_layers"),
    "inner": ({"intermediate_size": 3}, AnatomyError, "intermediate_size"),
    "connector": ({"mm_dense_connector_type": "dci"}, AnatomyError, "needs 48 columns"),
    "no such connector": ({"mm_dense_connector_type": "x"}, AnatomyError, "sti, sci and dci"),
    "widths": ({"mm_hidden_size": 32}, AnatomyError, "mm_hidden_size is 32"),
    "projector": ({"mm_projector_type": "linear"}, AnatomyError, "mlp2x_gelu"),
    "feature": ({"mm_vision_select_feature": "x"}, AnatomyError, "mm_vision_select_feature"),
    "layer": ({"mm_vision_select_layer": -9}, AnatomyError, "outside the tower's states"),
    "layer is text": ({"mm_vision_select_layer": "x"}, AnatomyError, "not a layer"),
    "merge": (
        {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial"},
        AnatomyError,
        "cannot be expressed",
    ),
    "max": (
        {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"},
        AnatomyError,
        "cannot be expressed",
    ),
    "no newline": (
        {
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": [[28, 56]],
        },
        AnatomyError,
        "image_newline",
    ),
    "no grid": (
        {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"},
        AnatomyError,
        "image_grid_pinpoints",
    ),
    "class": (
        {"architectures": ["LlavaMptForCausalLM"]},
        UnknownArchitectureError,
        "LlavaMptForCausalLM",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors(name: str, tower: Path, tmp_path: Path) -> None:
    config, kind, words = CONTRADICTIONS[name]
    model = write_original_llava(tmp_path / "m", SIZES, str(tower), inside=False)
    assert words in refused(edit(model, **config), kind).message


def without(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != name}, path)


def with_more(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), name: torch.zeros(2)}, path)


def unreadable_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"\xff" * 20)


Damage = Callable[[Path], None]
DAMAGES: dict[str, tuple[Damage, type[DcSurgeryError], str]] = {
    "no projector": (
        lambda folder: without(folder, "model.mm_projector.0.weight"),
        AnatomyError,
        "has no tensor model.mm_projector.0.weight",
    ),
    "no head": (lambda folder: without(folder, "lm_head.weight"), AnatomyError, "lm_head"),
    "a layer incomplete": (
        lambda folder: without(folder, "model.layers.1.self_attn.q_proj.weight"),
        AnatomyError,
        "layer 1 of the language model has no self_attn.q_proj.weight",
    ),
    "a third layer": (
        lambda folder: with_more(folder, "model.mm_projector.4.weight"),
        AnatomyError,
        "no place for the tensor 'model.mm_projector.4.weight'",
    ),
    "a resampler": (
        lambda folder: with_more(folder, "model.vision_resampler.x"),
        AnatomyError,
        "no place",
    ),
    "a broken tokenizer": (unreadable_tokenizer, MalformedCheckpointError, "tokenizer.model"),
    "weights gone": (
        lambda folder: (folder / "model.safetensors").unlink(),
        CheckpointNotFoundError,
        "neither model.safetensors nor",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_original(name: str, tower: Path, tmp_path: Path) -> None:
    damage, kind, words = DAMAGES[name]
    model = write_original_llava(tmp_path / "m", SIZES, str(tower), inside=False)
    damage(model)
    assert words in refused(model, kind).message


@pytest.mark.parametrize("pickled", [True, False])
def test_an_index_without_its_shards(pickled: bool, tower: Path, tmp_path: Path) -> None:
    model = write_original_llava(tmp_path / "m", SIZES, str(tower), shards=2, pickled=pickled)
    name = next(model.glob("*00002-of-00002*"))
    name.unlink()
    error = refused(model, CheckpointNotFoundError)
    assert name.name in error.message and "index.json names" in error.message


@pytest.mark.parametrize("part", ["mm_projector.bin", "non_lora_trainables.bin"])
def test_a_part_of_a_model_is_none(part: str, tower: Path, tmp_path: Path) -> None:
    model = write_original_llava(tmp_path / "m", SIZES, str(tower))
    (model / "model.safetensors").rename(model / part)
    assert part in refused(model, CheckpointNotFoundError).message


def test_towers_that_are_not_there(tmp_path: Path) -> None:
    gone = str(tmp_path / "ckpt" / "my-tower")
    model = write_original_llava(tmp_path / "m", SIZES, gone, inside=False)
    error = refused(model, CheckpointNotFoundError)
    assert gone in error.message and "--tower my-tower=PATH" in error.hint
    # Known by name, but there is no network: the error says where it was looked for.
    edit(model, mm_vision_tower="./model_zoo/OpenAI/clip-vit-large-patch14-336")
    error = refused(model, CheckpointNotFoundError)
    assert "openai/clip-vit-large-patch14-336" in error.message
    assert "--tower clip-vit-large-patch14-336=PATH" in error.hint
    inside = write_original_llava(tmp_path / "n", SIZES, "someone/some-tower")
    error = refused(inside, CheckpointNotFoundError)
    assert "how many heads it has" in error.message and "--tower some-tower=" in error.hint


def test_towers_that_do_not_fit(tower: Path, tmp_path: Path) -> None:
    model = write_original_llava(tmp_path / "m", SIZES, "old/path", inside=False)
    places = {
        "depth": write_tower(tmp_path / "depth", OriginalSizes(depth=4, width=24)),
        "kind": write_tower(tmp_path / "kind", OriginalSizes("siglip", depth=4, width=12)),
        "no tower": write_original_llava(tmp_path / "other", SIZES, str(tower)),
    }
    for name, place in places.items():
        kind = AnatomyError
        assert refused(model, kind, towers={"path": str(place)}).message, name
    inside = write_original_llava(tmp_path / "n", SIZES, "old/path")
    error = refused(inside, AnatomyError, towers={"path": str(places["depth"])})
    assert "does not fit its config" in error.message
    broken = write_tower(tmp_path / "broken", SIZES)
    without(broken, "vision_model.encoder.layers.2.mlp.fc1.weight")
    error = refused(model, AnatomyError, towers={"path": str(broken)})
    assert "fc1.weight" in error.message


def test_a_tower_that_moved_to_where_the_config_says_is_found_again(
    tower: Path, tmp_path: Path
) -> None:
    elsewhere = Path(shutil.copytree(tower, tmp_path / "elsewhere"))
    model = write_original_llava(tmp_path / "m", SIZES, "ckpt/gone", inside=False)
    out = tmp_path / "out"
    done = dcsurgery.convert(model, out, form="delta", towers={"gone": str(elsewhere)})
    assert done.plan.base.towers["ckpt/gone"].place == str(elsewhere)
    (model / "ckpt").mkdir()
    elsewhere.rename(model / "ckpt" / "gone")
    assert open_base(dcsurgery.read_plan(out)).folders == (model, model / "ckpt" / "gone")


def test_a_tower_nobody_asked_for(tower: Path, tmp_path: Path) -> None:
    model = write_original_llava(tmp_path / "m", SIZES, str(tower), inside=False)
    error = refused(model, RequestError, towers={"another": str(tower)})
    assert "'another'" in error.message and str(tower) in error.hint
    hugging_face = dcsurgery.tiny.write_tiny_llava(tmp_path / "hf")
    assert "--tower" in refused(hugging_face, RequestError, towers={"x": str(tower)}).message


def test_pickles_are_read_of_originals_alone(tower: Path, tmp_path: Path) -> None:
    model = write_original_llava(tmp_path / "m", SIZES, str(tower), pickled=True)
    assert dcsurgery.inspect(model).original is not None
    edit(model, architectures=["LlavaForConditionalGeneration"], mm_vision_tower="DROP")
    assert "pickles only" in refused(model, UnsafeFormatError).message


def test_a_trained_connector_takes_no_other(tower: Path, tmp_path: Path) -> None:
    sizes = OriginalSizes()
    named = write_tower(tmp_path / "deep", sizes)
    model = write_original_llava(tmp_path / "m", sizes, str(named), connector="sci")
    for options in ({"connector": "mix"}, {"groups": 3}, {"layers": "3,4"}, {"init": "paper"}):
        with pytest.raises(PlanError, match="the surgery is done"):
            dcsurgery.convert(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    shallow = write_original_llava(tmp_path / "s", SIZES, str(tower), connector="dci")
    assert "the tower has 4 blocks" in refused(shallow, AnatomyError).message
