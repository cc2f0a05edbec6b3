from __future__ import annotations

import weakref
from pathlib import Path

import torch

from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.verification.models import free_memory, load_vision


def test_feature_checks_hold_no_word_embeddings(tmp_path: Path) -> None:
    write_tiny_llava(tmp_path / "model")
    model = load_vision(open_checkpoint(tmp_path / "model"))
    text = model.config.get_text_config()
    held = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert text.vocab_size not in {shape[0] for shape in held.values()}
    assert any("vision_tower" in name for name in held)
    assert any("multi_modal_projector" in name for name in held)


def test_a_dropped_model_is_freed_although_it_refers_to_itself() -> None:
    model = torch.nn.Linear(2, 2)
    model.owner = [model]
    seen = weakref.ref(model)
    del model
    assert seen() is not None
    free_memory()
    assert seen() is None
