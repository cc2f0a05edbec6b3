"""Original Mini-Gemini checkpoints, and the Dense Connector trained with that code base."""

from __future__ import annotations

import json
import math
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import dcsurgery
from dcsurgery.checkpoint.headers import lay_out, render_header
from dcsurgery.errors import (
    AnatomyError,
    CheckpointNotFoundError,
    DcSurgeryError,
    PlanError,
    RequestError,
)
from dcsurgery.modeling.mini_gemini import MiniGeminiConfig, MiniGeminiForConditionalGeneration
from dcsurgery.modeling.mini_gemini.original import CHECKPOINT, original_config, renamed, turned
from dcsurgery.tiny.mini_gemini import (
    NAMES,
    Language,
    mini_gemini_config,
    mini_gemini_tensors,
    write_mini_gemini,
    write_tiny_mini_gemini,
)
from dcsurgery.tiny.original_mini_gemini import (
    AUX_FOLDER,
    CLIP_FOLDER,
    original_tensors,
    stated_config,
    write_original,
    write_original_mini_gemini,
    write_towers,
)
from dcsurgery.tiny.weights import model_shapes, rename
from tests.architectures.inputs import mini_gemini_inputs
from tests.closeness import assert_near
from tests.golden.numbers import GOLDEN
from tests.surgery import digests, random_matrix, write_delta

pytestmark = pytest.mark.slow

LAYOUT = GOLDEN / "mgm_llama_checkpoint_layout.json"
FIRST = "model.mm_projector.0.weight"


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_towers(tmp_path_factory.mktemp("towers") / "own", mini_gemini_config())


dcsurgery.register()


def logits(model: Any, **changed: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**{**mini_gemini_inputs(model, 2, 1), **changed}).logits
    return found


@cache
def published_layout() -> dict[str, Any]:
    """Names and shapes that the reference's own save_pretrained wrote, and its config."""
    full: dict[str, Any] = json.loads(LAYOUT.read_text())["layouts"]["full"]
    return full


def published_sizes() -> dict[str, Any]:
    """The config, in this package's layout, of the model that the layout was taken from."""
    stated = published_layout()["config_json"]
    config = mini_gemini_config(depth=24)
    text = {"model_type", "pad_token_id"}
    config["text_config"] = {
        key: value
        for key, value in stated.items()
        if key in config["text_config"] or key.startswith(("attention_", "initializer", "rope_"))
        if key not in text
    } | {"model_type": "llama", "pretraining_tp": 1, "hidden_act": "silu"}
    config["vision_config"] |= {"image_size": 28, "patch_size": 7}
    dims = {"hidden_sizes": [8, 16, 32, 64], "image_size": stated["image_size_aux"]}
    config["vision_config_aux"] |= dims
    return config


def test_tiny_originals_have_the_published_layout() -> None:
    full, config = published_layout(), published_sizes()
    own = original_tensors(mini_gemini_tensors(config))
    assert {name: list(value.shape) for name, value in own.items()} == full["state_dict"]
    stated = {**full["config_json"]}
    made = {**stated_config(config), "torch_dtype": "float32"}
    for key in ("mm_vision_tower", "mm_vision_tower_aux"):
        assert stated.pop(key) and made.pop(key)
    assert made == stated


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
    plan = dcsurgery.convert(base, tmp_path / "out").plan
    assert (plan.form, plan.base.original) == ("delta", "original Mini-Gemini")
    assert any("never defined" in note for note in plan.notes) is (made.grid > 1)
    before = dcsurgery.load(base, dtype=torch.float32)
    assert torch.equal(logits(dcsurgery.load(tmp_path / "out")), logits(before))
    oracle = AutoModelForImageTextToText.from_pretrained(hub, dtype=torch.float32).eval()
    assert_near(logits(before), logits(oracle))
    weight = random_matrix(plan)
    write_delta(base, tmp_path / "random", weight)
    write_delta(hub, tmp_path / "random-hub", weight)
    found, wanted = (dcsurgery.load(tmp_path / name) for name in ("random", "random-hub"))
    assert (logits(found) - logits(before)).abs().max() > 0.05
    assert_near(logits(found), logits(wanted))


def test_a_converted_original_answers_and_is_verified(towers: Path, tmp_path: Path) -> None:
    stated = {"vocab_size": 260}  # the image token lies outside the vocabulary
    rows = {name: torch.randn(260, 24) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    base = write_original_mini_gemini(tmp_path / "base", towers=towers, stated=stated, tensors=rows)
    dcsurgery.convert(base, tmp_path / "out")
    report = dcsurgery.verify(tmp_path / "out", logits=True)
    assert report.passed, report.checks
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    prompt = processor.apply_chat_template(talk, add_generation_prompt=True)
    picture = torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8)
    inputs = processor(images=[picture], text=prompt, return_tensors="pt")
    assert processor.image_token_id == 260
    assert (inputs["input_ids"] == 260).sum() == 16
    model = dcsurgery.load(tmp_path / "out")
    answer = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 3


def test_dead_tower_paths_are_asked_for_and_given(tmp_path: Path) -> None:
    """The published config names a path on the authors' machine; weights may be .bin files."""
    own = write_towers(tmp_path / "own", mini_gemini_config(), pickled=True)
    base = write_original_mini_gemini(tmp_path / "base", inside=False)
    with pytest.raises(CheckpointNotFoundError) as caught:
        dcsurgery.convert(base, tmp_path / "out")
    assert "--tower clip-tiny=PATH" in str(caught.value.hint)
    places = {CLIP_FOLDER: str(own / CLIP_FOLDER)}
    with pytest.raises(CheckpointNotFoundError) as caught:
        dcsurgery.convert(base, tmp_path / "out", towers=places)
    assert f"--tower {AUX_FOLDER}=PATH" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
    places["mm_vision_tower_aux"] = str(own / AUX_FOLDER)
    dcsurgery.convert(base, tmp_path / "out", towers=places)
    found = dcsurgery.load(tmp_path / "out")
    hub = write_tiny_mini_gemini(tmp_path / "hub", processor=False)
    oracle = AutoModelForImageTextToText.from_pretrained(hub, dtype=torch.float32).eval()
    assert_near(logits(found), logits(oracle))


def test_public_towers_are_known_by_the_names_of_their_folders() -> None:
    from dcsurgery.originals.towers import Towers

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
    plan = dcsurgery.convert(base, tmp_path / "out").plan
    assert (plan.kind, plan.init, plan.form) == ("dci", "published", "delta")
    assert any("is inferred" in note for note in plan.notes)
    assert dcsurgery.verify(tmp_path / "out").passed
    model = dcsurgery.load(tmp_path / "out")
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
    assert_near(found, wanted[0])
    assert torch.equal(logits(dcsurgery.load(base)), logits(model))


@pytest.mark.parametrize("trained", ["original", "hub"])
def test_the_reference_form_has_the_published_layout_and_is_read_back(
    tmp_path: Path, trained: str
) -> None:
    """Keys, shapes and config of the reference's own save, three states wide, one file indexed."""
    config = published_sizes()
    own = write_towers(tmp_path / "own", config)
    base = tmp_path / "base"
    if trained == "original":
        write_original(base, config, towers=own, inside=False)
    else:
        write_mini_gemini(base, config)
    out = dcsurgery.convert(base, tmp_path / "out", form="reference")
    assert "mgm_arch.py" in out.plan.loader
    full = published_layout()
    shapes = {name: list(shape) for name, shape in read_shapes(tmp_path / "out").items()}
    assert shapes == {**full["state_dict"], FIRST: [24, 48]}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(shapes)
    wide = {"mm_hidden_size": 48, "mm_hidden_size_uni": 16}
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    named = {key: stated[key] for key in ("mm_vision_tower", "mm_vision_tower_aux")}
    assert stated == {**full["config_json"], **wide, **named}
    # Both towers are inside; of CLIP the heads are still to be told.
    places = {"mm_vision_tower": str(own / CLIP_FOLDER)}
    again = dcsurgery.convert(tmp_path / "out", tmp_path / "again", towers=places)
    assert again.plan.init == "published"
    pictures = {"pixel_values": torch.randn(1, 3, 28, 28)}
    pictures["pixel_values_aux"] = torch.randn(1, 3, 64, 64)
    models = (dcsurgery.load(base, dtype=torch.float32), dcsurgery.load(again.output))
    before, after = (model.get_image_features(**pictures).pooler_output[0] for model in models)
    assert torch.equal(before, after)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a folder, read by safetensors itself."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return found


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
    "half a tower": (without_tensors("vision_stages.1.blocks"), "is not a whole ConvNeXt"),
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
        dcsurgery.convert(base, tmp_path / "out")
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
            dcsurgery.inspect(base, towers={folder: str(wrong / folder)})
        assert message in caught.value.message
    inside = write_original_mini_gemini(tmp_path / "inside", towers=towers)
    with pytest.raises(AnatomyError, match="is inside the checkpoint"):
        dcsurgery.inspect(inside, towers={AUX_FOLDER: str(towers / AUX_FOLDER)})
    with pytest.raises(RequestError, match="does not need"):
        dcsurgery.inspect(inside, towers={"elsewhere": str(towers)})
    other["vision_config_aux"] |= {"hidden_sizes": [384, 8, 12, 16]}
    largest = write_towers(tmp_path / "largest", other)
    with pytest.raises(AnatomyError, match="norms add 1e-5"):
        dcsurgery.inspect(base, towers={AUX_FOLDER: str(largest / AUX_FOLDER)})
    shutil.rmtree(tmp_path / "wrong" / AUX_FOLDER)
    (tmp_path / "wrong" / AUX_FOLDER).mkdir()
    with pytest.raises(CheckpointNotFoundError, match="has no open_clip weights"):
        dcsurgery.inspect(base, towers={AUX_FOLDER: str(wrong / AUX_FOLDER)})


def test_the_reference_form_keeps_a_trained_connector(tmp_path: Path) -> None:
    """Written with a random D and read back: the same D, and every other byte as it was."""
    own = write_towers(tmp_path / "own", mini_gemini_config(depth=24))
    stated = {"mm_hidden_size": 48, "mm_hidden_size_uni": 16}
    base = write_original_mini_gemini(tmp_path / "base", depth=24, towers=own, stated=stated)
    widened(base)
    dcsurgery.convert(base, tmp_path / "out", form="reference")
    assert digests(tmp_path / "out") == digests(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connector": "sci"}, "this connector is another (sci"),
        ({}, "averages hidden states 0..11"),
    ],
)
def test_the_reference_form_refuses_what_was_never_published(
    towers: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    base = write_original_mini_gemini(tmp_path / "base", towers=towers)
    with pytest.raises(PlanError) as caught:
        dcsurgery.convert(base, tmp_path / "out", form="reference", **options)
    assert message in caught.value.message and not (tmp_path / "out").exists()


def test_a_true_size_model_is_planned_and_converted_with_flat_memory(tmp_path: Path) -> None:
    """MGM-7B without weights: 14.5 GB of sparse files, with the parameters its shards hold."""
    text = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008}
    text |= {"num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000}
    text |= {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    built = MiniGeminiConfig(text_config=text)
    config = {**built.to_dict(), "text_config": text}
    ours = rename(model_shapes(MiniGeminiForConditionalGeneration, built), NAMES)
    shapes = {str(renamed(name, turned(CHECKPOINT))): shape for name, shape in ours.items()}
    assert sum(math.prod(shape) for shape in shapes.values()) == 7_266_093_504
    base = tmp_path / "base"
    base.mkdir()
    write_sparse(base, shapes)
    (base / "config.json").write_text(json.dumps({**original_config(config)}))
    tracemalloc.start()
    try:
        plan = dcsurgery.convert(base, tmp_path / "out").plan
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.layout.groups == (tuple(range(12)), tuple(range(12, 24)))
    assert (plan.new_parameters, plan.image_tokens) == (2048 * 4096, 576)
    # The largest tensor that is looked at is the projector's second matrix, 34 MB.
    assert peak < 200e6
    delta = (tmp_path / "out" / "dense_connector" / "model.safetensors").stat().st_size
    assert delta < 17e6


def write_sparse(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write headers of three shards, their data a hole."""
    names, mapping = list(shapes), {}
    for index in range(3):
        part = names[index * len(names) // 3 : (index + 1) * len(names) // 3]
        entries = lay_out([(name, "F16", shapes[name]) for name in part])
        header = render_header(entries, {"format": "pt"})
        path = folder / f"model-{index + 1:05d}-of-00003.safetensors"
        path.write_bytes(header)
        os.truncate(path, len(header) + entries[-1].end)
        mapping.update(dict.fromkeys(part, path.name))
    table = {"metadata": {"total_size": 0}, "weight_map": mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
