"""Which classes are supported, refused with a reason, or unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import dcsurgery
from dcsurgery.architectures import available
from dcsurgery.architectures._refused import REFUSED
from dcsurgery.errors import UnknownArchitectureError

SUPPORTED = [name for architecture in available() for name in architecture.class_names]


def checkpoint_of(class_name: str, folder: Path) -> Path:
    """Write a checkpoint of a class as far as a reader of its name looks."""
    folder.mkdir()
    save_file({"tensor": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": [class_name]}))
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_class_exists_and_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    assert hasattr(transformers, name)
    with pytest.raises(UnknownArchitectureError) as caught:
        dcsurgery.inspect(checkpoint_of(name, tmp_path / "base"))
    assert caught.value.message == f"{name} cannot take a dense connector: {REFUSED[name]}"
    assert "dcsurgery architectures" in str(caught.value.hint)


def test_a_class_is_supported_once_or_refused() -> None:
    names = [*SUPPORTED, *REFUSED]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_supported_class_is_one_that_transformers_loads(name: str) -> None:
    dcsurgery.register()
    known = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    taught = transformers.AutoModelForImageTextToText._model_mapping._extra_content.values()
    assert name in known | {model.__name__ for model in taught}


@pytest.mark.parametrize("name", ["Inkling2ForConditionalGeneration", "LlamaForCausalLM", ""])
def test_a_class_nobody_knows_is_said_to_be_unknown(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitectureError, match="is not supported"):
        dcsurgery.inspect(checkpoint_of(name, tmp_path / "base"))


@pytest.mark.parametrize("architecture", available(), ids=lambda found: found.name)
def test_an_architecture_says_what_the_support_table_prints(
    architecture: dcsurgery.architectures.Architecture,
) -> None:
    assert architecture.towers and architecture.checkpoints
    assert all(checkpoint.count("/") == 1 for checkpoint in architecture.checkpoints)
    assert ("stock" in architecture.forms) == bool(architecture.stock_loader)
