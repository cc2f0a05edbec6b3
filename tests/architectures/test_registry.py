"""Which classes are supported, refused with a reason, or unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import dcsurgery
from dcsurgery.architectures import available, class_name, find_architecture
from dcsurgery.architectures._known import KNOWN, Known
from dcsurgery.architectures._refused import REFUSED
from dcsurgery.errors import UnknownArchitectureError
from dcsurgery.surgery.support_table import known_table

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


# Their types are not their classes' names; transformers always writes the class.
UNLIKE = ("shieldgemma2", "glmga", "pp_chart2table", "inkling_mm_model")
FAMILIES = Path(__file__).parents[2] / "docs" / "families.md"
OURS = [known for known in KNOWN if known.class_names[0] not in {*SUPPORTED, *REFUSED}]


@pytest.mark.parametrize("known", OURS, ids=lambda found: found.class_names[0])
def test_a_well_known_repository_is_answered_with_its_twin_or_the_reason(
    known: Known, tmp_path: Path
) -> None:
    for number, name in enumerate(known.class_names):
        folder = checkpoint_of(name, tmp_path / str(number))
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # before the weights
        with pytest.raises(UnknownArchitectureError) as caught:
            dcsurgery.inspect(folder)
        assert name in caught.value.message
        if known.twin:
            assert known.twin in caught.value.hint
        else:
            assert known.why in caught.value.message


def test_a_twin_is_a_repository_that_can_be_read() -> None:
    examples = {repo for found in available() for repo in found.checkpoints}
    for known in KNOWN:
        named = re.findall(r"[\w.-]+/[\w.-]+\w", known.twin)
        assert bool(named) == bool(known.twin)
        assert set(named) <= examples, known.twin


def test_no_class_has_two_rows() -> None:
    names = [name for known in KNOWN for name in known.class_names]
    assert len(set(names)) == len(names)


def test_the_page_has_the_table_that_the_code_uses() -> None:
    assert known_table() in FAMILIES.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k, n in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
     if n in {*SUPPORTED, *REFUSED} and k not in UNLIKE],
)  # fmt: skip
def test_a_config_without_a_class_is_known_by_its_type(kind: str, name: str) -> None:
    assert class_name({"model_type": kind}) == name
    assert class_name({"model_type": kind, "architectures": []}) == name
    if name in SUPPORTED:
        assert name in find_architecture({"model_type": kind}).class_names


@pytest.mark.parametrize(
    ("kind", "name"),
    [("internvl_chat", "InternVLChatModel"), ("multi_modality", "MultiModalityCausalLM"),
     ("colpali", "ColPaliForRetrieval"), ("phi3_v", "Phi3VForCausalLM"), ("minicpmv", "MiniCPMV"),
     ("Llama_Nemotron_Nano_VL", "Llama_Nemotron_Nano_VL"), ("molmo", "MolmoForCausalLM")],
)  # fmt: skip
def test_the_type_of_a_well_known_repository_is_enough(kind: str, name: str) -> None:
    assert class_name({"model_type": kind}) == name


# Config, and what the refusal says: what it is, or what the family's own class is.
RELATIVES = [
    ({"architectures": ["MiniCPMV4_5"], "model_type": "minicpmv"}, "attention resampler"),
    ({"architectures": ["LlavaModel"], "model_type": "llava"}, "LlavaForConditionalGeneration"),
    ({"architectures": ["ColQwen2_5"], "model_type": "qwen2_5_vl"},
     "Qwen2_5_VLForConditionalGeneration is the one of its family that answers"),
    ({"architectures": ["Qwen2VLForSequenceClassification"], "model_type": "qwen2_vl"},
     "Qwen2VLForConditionalGeneration is the one of its family that answers"),
    ({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}, "language model alone"),
    ({"architectures": ["SailVLForCausalLM"], "vision_config": {}, "auto_map": {"AutoModel": "x"}},
     "its code comes with the weights"),
    ({"architectures": "LlavaForConditionalGeneration"}, "must have it in a list"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), RELATIVES, ids=lambda found: str(found)[:60])
def test_relatives_of_known_models_are_told_apart(
    config: dict[str, object], words: str, tmp_path: Path
) -> None:
    folder = checkpoint_of("x", tmp_path / "base")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownArchitectureError) as caught:
        dcsurgery.inspect(folder)
    assert words in caught.value.message


FORKS = {
    "s2": ({"architectures": ["LlavaLlamaForCausalLM"], "s2": True, "s2_scales": "336,672",
            "mm_vision_tower": "openai/clip"}, "several scales"),
    "mlx": ({"architectures": ["LlavaForConditionalGeneration"],
             "quantization": {"group_size": 64, "bits": 4}}, "MLX conversion"),
    "vila": ({"architectures": ["LlavaLlamaModel"], "llm_cfg": "llm"}, "VILA keeps"),
    "sharegpt4v": ({"architectures": ["Share4VLlamaForCausalLM"], "mm_vision_tower": "x"},
                   "ShareGPT4V"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORKS)
def test_forks_of_llava_get_a_sentence_of_their_own(name: str, tmp_path: Path) -> None:
    config, words = FORKS[name]
    folder = checkpoint_of("x", tmp_path / "base")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownArchitectureError, match=words):
        dcsurgery.inspect(folder)


def test_weights_that_mlx_saved_are_not_taken_for_transformers(tmp_path: Path) -> None:
    folder = checkpoint_of("LlavaForConditionalGeneration", tmp_path / "base")
    save_file({"tensor": torch.zeros(1)}, folder / "model.safetensors", {"format": "mlx"})
    with pytest.raises(UnknownArchitectureError, match="saved by MLX"):
        dcsurgery.inspect(folder)
