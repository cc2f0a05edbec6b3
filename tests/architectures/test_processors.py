"""The processor files of tiny models: transformers' own processor feeds the upgraded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dcsurgery
from tests.tiny.aya_vision import write_tiny_aya_vision
from tests.tiny.deepseek_vl import write_tiny_deepseek_vl, write_tiny_deepseek_vl_hybrid
from tests.tiny.gemma3 import write_tiny_gemma3
from tests.tiny.idefics3 import write_tiny_idefics3
from tests.tiny.janus import write_tiny_janus
from tests.tiny.mistral3 import write_tiny_mistral3
from tests.tiny.paligemma import write_tiny_paligemma

# Family -> writer, what a prompt holds for a picture, squares a picture of 64 x 32 becomes.
CASES: dict[str, tuple[Callable[[Path], Path], str, int]] = {
    "aya_vision": (write_tiny_aya_vision, "<image>", 3),
    "deepseek_vl": (write_tiny_deepseek_vl, "<image_placeholder>", 1),
    "deepseek_vl_hybrid": (write_tiny_deepseek_vl_hybrid, "<image_placeholder>", 1),
    "gemma3": (write_tiny_gemma3, "<start_of_image>", 1),
    "idefics3": (write_tiny_idefics3, "<image>", 3),
    "janus": (write_tiny_janus, "<image_placeholder>", 1),
    "paligemma": (write_tiny_paligemma, "<image>", 1),
}


# PaliGemmaProcessor turns tensors into arrays the way numpy 2 warns of.
@pytest.mark.parametrize("family", CASES)
def test_processor_and_upgraded_model_agree_on_tokens(family: str, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    write, image_token, squares = CASES[family]
    folder = write(tmp_path / "base")
    dcsurgery.convert(folder, tmp_path / "out")
    model = dcsurgery.load(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 64, 3), dtype=np.uint8)
    prepared = processor(
        images=[Image.fromarray(pixels)], text=[f"{image_token} what is it?"], return_tensors="pt"
    )
    tokens = dcsurgery.inspect(folder).anatomy.image_tokens
    found = torch.eq(prepared["input_ids"], model.config.image_token_id).sum()
    assert found == squares * tokens
    prepared.pop("labels", None)
    with torch.no_grad():
        answer = model.generate(**prepared, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] > prepared["input_ids"].shape[1]


WORDS = {
    "aya_vision": "patch_size",
    "deepseek_vl": "num_image_tokens",
    "deepseek_vl_hybrid": "num_image_tokens",
    "gemma3": "image_seq_length",
    "idefics3": "image_seq_len",
    "janus": "num_image_tokens",
}


@pytest.mark.parametrize("word", [None, 7])
@pytest.mark.parametrize("family", WORDS)
def test_a_processor_that_is_told_no_or_another_count_is_told_the_model_s(
    family: str, word: int | None, tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    write, image_token, squares = CASES[family]
    folder = write(tmp_path / "base")
    path = folder / "processor_config.json"
    stated = json.loads(path.read_text())
    found = dcsurgery.inspect(folder)
    assert not found.processor.notes
    stated.pop(WORDS[family], None)
    path.write_text(json.dumps(stated if word is None else {**stated, WORDS[family]: word}))
    tokens = found.anatomy.image_tokens
    wanted = found.anatomy.tower.patch_size if family == "aya_vision" else tokens
    assert f"the model makes {tokens}" in " ".join(dcsurgery.inspect(folder).processor.notes)
    plan = dcsurgery.convert(folder, tmp_path / "out").plan
    assert plan.processor_changes == {WORDS[family]: {"from": word, "to": wanted}}
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    picture = Image.fromarray(np.zeros((32, 64, 3), np.uint8))
    given = processor(images=[picture], text=[f"{image_token} what?"], return_tensors="pt")
    model = dcsurgery.load(tmp_path / "out")
    assert given["input_ids"].eq(model.config.image_token_id).sum() == squares * tokens


@pytest.mark.parametrize("word", [None, 7])
def test_paligemma_s_count_is_compared_where_its_image_processor_keeps_it(
    word: int | None, tmp_path: Path
) -> None:
    folder = write_tiny_paligemma(tmp_path / "base")
    path = folder / "preprocessor_config.json"
    stated = json.loads(path.read_text())
    found = dcsurgery.inspect(folder).processor
    assert found.written == found.made == stated.pop("image_seq_length") and not found.problems
    path.write_text(json.dumps(stated if word is None else {**stated, "image_seq_length": word}))
    found = dcsurgery.inspect(folder).processor
    assert (found.written, found.words) == (word, {})
    (note,) = dcsurgery.convert(folder, tmp_path / "out").plan.notes[-1:]
    assert f"image_seq_length is {word}" in note and f"the model makes {found.made}" in note


def test_pixtral_s_processor_is_told_how_many_patches_become_a_token(tmp_path: Path) -> None:
    folder = write_tiny_mistral3(tmp_path / "base")
    path = folder / "processor_config.json"
    stated = json.loads(path.read_text())
    assert not dcsurgery.inspect(folder).processor.notes
    assert stated.pop("spatial_merge_size") == 2
    path.write_text(json.dumps(stated))
    plan = dcsurgery.convert(folder, tmp_path / "out", form="delta").plan
    assert plan.processor_changes == {"spatial_merge_size": {"from": None, "to": 2}}
