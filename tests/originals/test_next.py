"""AnyRes originals become LLaVA-NeXT; other language models; tokenizers and processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dcsurgery
from dcsurgery.errors import AnatomyError, MalformedCheckpointError
from dcsurgery.originals.llava import read_grid
from dcsurgery.originals.tokens import count_pieces
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from dcsurgery.tiny.tokenizer import write_tokenizer
from tests.architectures.cases import load
from tests.closeness import PAPER, assert_near
from tests.golden.numbers import golden
from tests.originals.originals import golden_original, golden_tower

ANYRES = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": "[[28, 56], [56, 28], [56, 56]]",
}


@pytest.fixture(scope="module")
def next_stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published AnyRes checkpoint with the golden tower and projector, in its stock form."""
    folder = tmp_path_factory.mktemp("next")
    named = golden_tower(folder / "clip", "clip")
    base = golden_original(folder / "base", "clip", "dci", named, wide=True, config=ANYRES)
    dcsurgery.convert(base, folder / "stock")
    return folder / "stock"


def test_anyres_becomes_llava_next_with_its_grid(next_stock: Path) -> None:
    config = json.loads((next_stock / "config.json").read_bytes())
    assert config["architectures"] == ["LlavaNextForConditionalGeneration"]
    assert config["image_grid_pinpoints"] == [[28, 56], [56, 28], [56, 56]]
    images = json.loads((next_stock / "preprocessor_config.json").read_bytes())
    assert images["image_grid_pinpoints"] == config["image_grid_pinpoints"]
    assert images["crop_size"] == {"height": 28, "width": 28}


def test_its_tiles_are_the_references_features_and_lines_end_in_the_newline(
    next_stock: Path,
) -> None:
    model = load(next_stock)
    tensors, _ = golden("llava_dc_clip")
    pixels, wanted = tensors["pixel_values"], tensors["dci.image_features"]
    tiles = torch.stack([pixels[0], pixels[1], pixels[0], pixels[0], pixels[1]])[None]
    with torch.no_grad():
        found = model.get_image_features(pixel_values=tiles, image_sizes=torch.tensor([[56, 56]]))
    features = getattr(found, "pooler_output", found)[0]
    assert_near(features[:16], wanted[0], PAPER)
    lines = features[16:].reshape(8, 9, -1)
    newline = load_file(next_stock / "model.safetensors")["image_newline"]
    assert all(torch.equal(line, newline) for line in lines[:, 8])
    upper = torch.cat([wanted[1].reshape(4, 4, -1), wanted[0].reshape(4, 4, -1)], dim=1)
    lower = torch.cat([wanted[0].reshape(4, 4, -1), wanted[1].reshape(4, 4, -1)], dim=1)
    assert_near(lines[:, :8], torch.cat([upper, lower]), PAPER)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, None),
        ({"mm_patch_merge_type": "spatial_unpad"}, None),
        ({"image_aspect_ratio": "pad", "mm_patch_merge_type": "spatial_unpad"}, None),
        (ANYRES, [[28, 56], [56, 28], [56, 56]]),
        ({**ANYRES, "image_grid_pinpoints": [[28, 56], [56, 56]]}, [[56, 28], [56, 56]]),
        ({k: v for k, v in ANYRES.items() if "aspect" not in k}, [[28, 56], [56, 28], [56, 56]]),
    ],
)
def test_the_originals_width_and_height_become_height_and_width(
    config: dict[str, Any], wanted: list[list[int]] | None
) -> None:
    assert read_grid(config) == wanted


@pytest.mark.parametrize("grid", [None, [], "x", "[[1]]", [[1, 2, 3]], 7, "__import__('os')"])
def test_a_grid_that_is_none_is_refused(grid: Any) -> None:
    with pytest.raises(AnatomyError, match="image_grid_pinpoints"):
        read_grid({**ANYRES, "image_grid_pinpoints": grid})


@pytest.mark.parametrize("text", ["mistral", "qwen2"])
def test_other_language_models_keep_their_class_and_verify(text: str, tmp_path: Path) -> None:
    sizes = OriginalSizes("siglip", depth=5)
    named = write_tower(tmp_path / "tower", sizes)
    base = write_original_llava(
        tmp_path / "base", sizes, str(named), text=text, dtype="bfloat16", config=ANYRES
    )
    done = dcsurgery.convert(base, tmp_path / "stock")
    assert done.plan.anatomy.language_model == text and done.plan.anatomy.tower.depth == 4
    assert done.plan.architecture == "llava_next"
    report = dcsurgery.verify(tmp_path / "stock", logits=True)
    assert report.passed, [check for check in report.checks if not check.passed]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original with a tokenizer that pads with <unk>, as LLaVA's does, in its stock form."""
    folder = tmp_path_factory.mktemp("spoken")
    sizes = OriginalSizes(depth=4, words=260)
    named = write_tower(folder / "tower", sizes)
    base = write_original_llava(folder / "base", sizes, str(named), inside=False)
    write_tokenizer(base, ())
    path = base / "tokenizer_config.json"
    words = json.loads(path.read_bytes()) | {"pad_token": "<unk>"}
    path.write_text(json.dumps(words))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "max_length": 99}
    (base / "generation_config.json").write_text(json.dumps(generation))
    dcsurgery.convert(base, folder / "stock")
    return folder / "stock"


def test_the_processor_and_the_model_agree_on_the_image(spoken: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(spoken)
    model = load(spoken)
    part = [{"type": "image"}, {"type": "text", "text": "Who?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": part}], add_generation_prompt=True
    )
    assert "USER: <image>\nWho? ASSISTANT:" in prompt
    picture = Image.new("RGB", (40, 30), (200, 90, 20))
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (28, 28)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 3


def test_the_tokenizer_gains_image_and_pad_behind_its_words(spoken: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spoken)
    config = json.loads((spoken / "config.json").read_bytes())
    assert tokenizer.convert_tokens_to_ids("<image>") == config["image_token_index"] == 260
    assert tokenizer.pad_token == "<pad>" and config["text_config"]["vocab_size"] == 320
    assert tokenizer.encode("<image>", add_special_tokens=False) == [260]
    generation = json.loads((spoken / "generation_config.json").read_bytes())
    assert "temperature" not in generation and generation["max_length"] == 99


def pieces(count: int) -> bytes:
    """A SentencePiece model of so many pieces, and a trainer section behind them."""
    piece = b"\x0a\x06" + b"\x0a\x01a\x15\x00\x00"
    return piece * count + b"\x12\x02\x08\x01" + b"\x18\x05"


def test_sentencepiece_models_are_counted() -> None:
    assert count_pieces(pieces(300)) == 300
    for broken in (pieces(3)[:-1], b"\xff" * 12, b"\x0b"):
        with pytest.raises(MalformedCheckpointError):
            count_pieces(broken)
