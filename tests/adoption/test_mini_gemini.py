"""Original Mini-Gemini checkpoints, and the Dense Connector trained with that code base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import dcsurgery
from dcsurgery.adopted_models import small_files
from dcsurgery.adoption import open_model
from dcsurgery.errors import AnatomyError, CheckpointNotFoundError, DcSurgeryError, RequestError
from dcsurgery.tiny.mini_gemini import (
    Language,
    mini_gemini_config,
    mini_gemini_tensors,
    write_tiny_mini_gemini,
)
from dcsurgery.tiny.original_mini_gemini import (
    AUX_FOLDER,
    CLIP_FOLDER,
    original_config,
    original_names,
    write_original_mini_gemini,
    write_towers,
)
from tests.architectures.test_mini_gemini import mini_gemini_inputs
from tests.surgery import random_matrix, write_delta

LAYOUT = Path(__file__).parents[1] / "golden" / "mgm_llama_checkpoint_layout.json"
FIRST = "model.mm_projector.0.weight"


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_towers(tmp_path_factory.mktemp("towers") / "own", mini_gemini_config())


def logits(model: Any, **changed: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**{**mini_gemini_inputs(model, 2, 1), **changed}).logits
    return found


def test_tiny_originals_have_the_published_layout() -> None:
    layout = json.loads(LAYOUT.read_text())
    config = mini_gemini_config("llama", depth=24)
    for part in ("text_config", "vision_config"):
        known = layout["llm_config" if part == "text_config" else "vision_config"]
        config[part] |= {key: value for key, value in known.items() if key in config[part]}
    config["text_config"]["model_type"] = "llama"
    config["vision_config"]["model_type"] = "clip_vision_model"
    full = layout["layouts"]["full"]
    stated = full["config_json"]
    dims = [8, 16, 32, 64]
    assert sum(dims) == stated["mm_hidden_size_aux"]
    config["vision_config_aux"] |= {"hidden_sizes": dims, "image_size": stated["image_size_aux"]}
    config["text_config"] |= {key: stated[key] for key in config["text_config"] if key in stated}
    config["text_config"]["model_type"] = "llama"
    own = original_names(mini_gemini_tensors(config))
    assert {name: list(value.shape) for name, value in own.items()} == full["state_dict"]
    made = original_config(config)
    same = {key: value for key, value in made.items() if stated.get(key) == value}
    assert set(made) - set(same) <= {
        "freeze_mm_mlp_adapter", "tune_mm_mlp_adapter", "mm_use_im_start_end", "pad_token_id"
    }  # fmt: skip


@dataclass(frozen=True)
class Original:
    language: Language
    inside: bool = True
    shards: int = 1
    old_name: bool = True
    grid: int = 1


ORIGINALS = (
    Original("llama", old_name=False),
    Original("llama", inside=False, shards=3, grid=2),
    Original("gemma", shards=3),
    Original("mixtral", inside=False),
    Original("mistral"),
)


@pytest.mark.parametrize("made", ORIGINALS, ids=str)
def test_an_original_is_the_same_model_and_zero_keeps_it(tmp_path: Path, made: Original) -> None:
    shape: dict[str, Any] = {"grid": made.grid, "whole": made.grid > 1}
    own = write_towers(tmp_path / "own", mini_gemini_config(made.language, **shape))
    hub = write_tiny_mini_gemini(tmp_path / "hub", made.language, processor=False, **shape)
    options = {"inside": made.inside, "shards": made.shards, "old_name": made.old_name}
    base = write_original_mini_gemini(
        tmp_path / "base", made.language, towers=own, **options, **shape
    )
    assert ("model_type" in json.loads((base / "config.json").read_text())) is not made.old_name
    plan = dcsurgery.convert_checkpoint(base, tmp_path / "out").plan
    assert (plan.form, plan.base.original) == ("delta", "original Mini-Gemini")
    before = dcsurgery.load_model(base, dtype=torch.float32)
    assert torch.equal(logits(dcsurgery.load_model(tmp_path / "out")), logits(before))
    oracle = AutoModelForImageTextToText.from_pretrained(hub, dtype=torch.float32).eval()
    assert (logits(before) - logits(oracle)).abs().max() < 1e-5
    weight = random_matrix(plan)
    write_delta(base, tmp_path / "random", weight)
    write_delta(hub, tmp_path / "random-hub", weight)
    found, wanted = (dcsurgery.load_model(tmp_path / name) for name in ("random", "random-hub"))
    assert (logits(found) - logits(before)).abs().max() > 0.05
    assert (logits(found) - logits(wanted)).abs().max() < 1e-5


def test_a_converted_original_answers_and_is_verified(towers: Path, tmp_path: Path) -> None:
    stated = {"vocab_size": 260}  # the image token lies outside the vocabulary
    rows = {name: torch.randn(260, 24) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    base = write_original_mini_gemini(tmp_path / "base", towers=towers, stated=stated, tensors=rows)
    dcsurgery.convert_checkpoint(base, tmp_path / "out")
    report = dcsurgery.verify_checkpoint(tmp_path / "out", logits=True)
    assert report.passed, report.checks
    with small_files(open_model(base)) as folder:
        processor = AutoProcessor.from_pretrained(folder)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    picture = torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8)
    inputs = processor(images=[picture], text=prompt, return_tensors="pt")
    assert processor.image_token_id == 260
    assert (inputs["input_ids"] == 260).sum() == 16
    model = dcsurgery.load_model(tmp_path / "out")
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3


def test_dead_tower_paths_are_asked_for_and_given(tmp_path: Path) -> None:
    """The published config names a path on the authors' machine; weights may be .bin files."""
    own = write_towers(tmp_path / "own", mini_gemini_config(), pickled=True)
    base = write_original_mini_gemini(tmp_path / "base", inside=False)
    with pytest.raises(CheckpointNotFoundError) as caught:
        dcsurgery.convert_checkpoint(base, tmp_path / "out")
    assert "--tower clip-tiny=PATH" in str(caught.value.hint)
    places = {CLIP_FOLDER: str(own / CLIP_FOLDER)}
    with pytest.raises(CheckpointNotFoundError) as caught:
        dcsurgery.convert_checkpoint(base, tmp_path / "out", towers=places)
    assert f"--tower {AUX_FOLDER}=PATH" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
    places["mm_vision_tower_aux"] = str(own / AUX_FOLDER)
    dcsurgery.convert_checkpoint(base, tmp_path / "out", towers=places)
    found = dcsurgery.load_model(tmp_path / "out")
    hub = write_tiny_mini_gemini(tmp_path / "hub", processor=False)
    oracle = AutoModelForImageTextToText.from_pretrained(hub, dtype=torch.float32).eval()
    assert (logits(found) - logits(oracle)).abs().max() < 1e-5


def test_public_towers_are_known_by_the_names_of_their_folders() -> None:
    from dcsurgery.adoption.towers import Towers

    zoo = "model_zoo/OpenAI/"
    aux = "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup"
    laion = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    assert Towers().place(zoo + aux, "mm_vision_tower_aux") == laion
    clip = Towers().place(zoo + "clip-vit-large-patch14-336", "mm_vision_tower")
    assert clip == "openai/clip-vit-large-patch14-336"


def widened(base: Path, states: int = 3) -> Tensor:
    """Widen a tiny original's first matrix in place, as a training with DCI leaves it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    hidden, width = tensors[FIRST].shape
    draw = torch.Generator().manual_seed(3)
    more = 0.25 * torch.randn(hidden, (states - 1) * width, generator=draw)
    tensors[FIRST] = torch.cat([tensors[FIRST], more], dim=1)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return tensors[FIRST]


@torch.no_grad()
def test_a_published_dense_connector_is_the_wide_projector(towers: Path, tmp_path: Path) -> None:
    """The formula over stored states: [feature + mined | states 0..11 | states 12..23]."""
    own = write_towers(tmp_path / "own", mini_gemini_config(depth=24))
    stated = {"mm_hidden_size": 48, "mm_hidden_size_uni": 16}
    base = write_original_mini_gemini(tmp_path / "base", depth=24, towers=own, stated=stated)
    wide = widened(base)
    plan = dcsurgery.convert_checkpoint(base, tmp_path / "out").plan
    assert (plan.kind, plan.init, plan.form) == ("dci", "published", "delta")
    assert any("is inferred" in note for note in plan.notes)
    assert dcsurgery.verify_checkpoint(tmp_path / "out").passed
    model = dcsurgery.load_model(tmp_path / "out")
    inner, inputs = model.model, mini_gemini_inputs(model, 1, 1)
    pixels, large = inputs["pixel_values"], inputs["pixel_values_aux"]
    states = torch.stack(inner.vision_tower(pixels, output_hidden_states=True).hidden_states)
    feature = states[23][:, 1:]
    mined = inner.patch_info_mining(feature, inner.encode_high(large))
    groups = [states[:12].mean(0)[:, 1:], states[12:24].mean(0)[:, 1:]]
    joined = torch.cat([feature + mined, *groups], dim=-1)
    projector = inner.multi_modal_projector
    hidden = torch.nn.functional.gelu(joined @ wide.T + projector.linear_1.bias)
    wanted = projector.linear_2(hidden)
    (found,) = model.get_image_features(pixels, large).pooler_output
    assert (found - wanted[0]).abs().max() < 1e-5
    assert torch.equal(logits(dcsurgery.load_model(base)), logits(model))


def without_shard(base: Path) -> None:
    (base / "model-00002-of-00003.safetensors").unlink()


def restated(**stated: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, **stated}))

    return change


def without_tensors(part: str) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        from dcsurgery.tiny.weights import write_weights

        kept = {}
        for path in sorted(base.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                kept |= {name: file.get_tensor(name) for name in file.keys() if part not in name}
            path.unlink()
        write_weights(base, kept, 3)

    return change


def with_tensor(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = base / "model-00001-of-00003.safetensors"
    save_file({**load_file(path), "model.vision_fpn.weight": torch.zeros(2)}, path)
    index = base / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.vision_fpn.weight"] = path.name
    index.write_text(json.dumps(table))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "index without a shard": (without_shard, "lacks model-00002-of-00003.safetensors"),
    "aux width": (restated(mm_hidden_size_aux=45), "mm_hidden_size_aux in config.json is 45, the"),
    "width": (restated(mm_hidden_size=32), "mm_hidden_size in config.json is 32, the tensors say"),
    "width of mining": (restated(mm_hidden_size_uni=8), "mm_hidden_size_uni in config.json is 8"),
    "wide in words alone": (restated(mm_hidden_size_uni=16), "needs 48 columns"),
    "whole without tiles": (restated(image_global=True), "image_grid 1 has no tiles"),
    "large picture": (restated(image_size_aux=24), "does not divide"),
    "projector": (restated(mm_projector_type="linear"), "mm_projector_type is 'linear'"),
    "features": (restated(mm_vision_select_feature="cls_patch"), "patch tokens alone"),
    "words": (restated(vocab_size=7), "vocab_size in config.json is 7"),
    "half a tower": (without_tensors("vision_stages.1.blocks"), "is no whole ConvNeXt"),
    "a tower with gaps": (without_tensors("blocks.0.gamma"), "tensors, a ConvNeXt of these depths"),
    "half a CLIP": (without_tensors("position_embedding"), "embeddings or blocks are incomplete"),
    "no mining": (without_tensors("vlm_uni_val"), "no tensor model.vlm_uni_val_projector.1"),
    "no head": (without_tensors("lm_head"), "no tensor lm_head.weight"),
    "unknown tensor": (with_tensor, "no place for the tensor 'model.vision_fpn.weight'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_contradictions_are_told_and_nothing_is_written(
    towers: Path, tmp_path: Path, name: str
) -> None:
    damage, message = BROKEN[name]
    base = write_original_mini_gemini(tmp_path / "base", towers=towers, shards=3)
    damage(base)
    with pytest.raises(DcSurgeryError) as caught:
        dcsurgery.convert_checkpoint(base, tmp_path / "out")
    assert message in caught.value.message and caught.value.hint
    assert not (tmp_path / "out").exists()


def test_wrong_towers_are_told(towers: Path, tmp_path: Path) -> None:
    other = mini_gemini_config()
    other["vision_config_aux"] |= {"hidden_sizes": [8, 8, 12, 20]}
    other["vision_config"] |= {"hidden_size": 8}
    wrong = write_towers(tmp_path / "wrong", other)
    base = write_original_mini_gemini(tmp_path / "base", inside=False, towers=towers)
    for folder, message in ((AUX_FOLDER, "the tensors say 48"), (CLIP_FOLDER, "needs 8 columns")):
        with pytest.raises(AnatomyError) as caught:
            dcsurgery.inspect_checkpoint(base, towers={folder: str(wrong / folder)})
        assert message in caught.value.message
    inside = write_original_mini_gemini(tmp_path / "inside", towers=towers)
    with pytest.raises(AnatomyError, match="is inside the checkpoint"):
        dcsurgery.inspect_checkpoint(inside, towers={AUX_FOLDER: str(towers / AUX_FOLDER)})
    with pytest.raises(RequestError, match="does not need"):
        dcsurgery.inspect_checkpoint(inside, towers={"elsewhere": str(towers)})
    shutil.rmtree(tmp_path / "wrong" / AUX_FOLDER)
    (tmp_path / "wrong" / AUX_FOLDER).mkdir()
    with pytest.raises(CheckpointNotFoundError, match="has no open_clip weights"):
        dcsurgery.inspect_checkpoint(base, towers={AUX_FOLDER: str(wrong / AUX_FOLDER)})
