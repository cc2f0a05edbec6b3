"""A folder that is no transformers checkpoint is named for what it is, with the next step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dcsurgery
from dcsurgery.errors import CheckpointError
from tests.checkpoint.folders import write

ADAPTER = json.dumps({"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}).encode()
CONFIG = json.dumps({"architectures": ["LlavaForConditionalGeneration"]}).encode()
X = b"x"
# Files, and what the refusal says; each with and without a config.json.
FOLDERS: dict[str, tuple[dict[str, bytes], str, str]] = {
    "lora": ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": X, "README.md": X},
             "adapter (LoRA) for 'llava-hf/llava-1.5-7b-hf'", "merge_and_unload()"),
    "lora as pickle": ({"adapter_config.json": ADAPTER, "adapter_model.bin": X},
                       "adapter (LoRA) for 'llava-hf", "merge_and_unload()"),
    "lora without base": ({"adapter_config.json": b"{}", "adapter_model.safetensors": X},
                          "a model it does not name", "merge it first"),
    "gguf": ({"model-Q4_K_M.gguf": X, "mmproj-f16.gguf": X}, "GGUF", "made from"),
    "gguf below": ({"Q4/model.gguf": X, "README.md": X}, "GGUF", "made from"),
    "mistral": ({"consolidated.safetensors": X, "params.json": b"{}", "tekken.json": b"{}"},
                "consolidated", "mistral-community/pixtral-12b"),
    "meta": ({"consolidated.00.pth": X, "params.json": b"{}", "tokenizer.model": X},
             "consolidated", "transformers' format"),
    "onnx": ({"onnx/model_q4.onnx": X, "onnx/model_q4.onnx_data": X}, "ONNX", "made from"),
    "openvino": ({"openvino_language_model.xml": X, "openvino_language_model.bin": X},
                 "OpenVINO", "made from"),
    "tensorrt": ({"rank0.engine": X}, "TensorRT", "made from"),
    "coreml": ({"FastVLM.mlpackage/Data/com.apple.CoreML/weights/weight.bin": X}, "Core ML",
               "made from"),
    "tflite": ({"model.tflite": X}, "LiteRT", "made from"),
    "flax": ({"flax_model.msgpack": X}, "JAX or Flax", "made from"),
    "big_vision": ({"paligemma-3b-pt-224.npz": X}, "JAX or Flax", "made from"),
    "tensorflow": ({"tf_model.h5": X}, "TensorFlow", "made from"),
    "nemo": ({"model.nemo": X}, "NeMo", "made from"),
    "diffusers": ({"model_index.json": b"{}", "unet/diffusion_pytorch_model.safetensors": X},
                  "diffusers pipeline", "vision-language model"),
    "sentence-transformers": ({"modules.json": b"[]", "pytorch_model.bin": X},
                              "sentence-transformers", "vision-language model"),
    "data set": ({"data/train-00000-of-00001.parquet": X, "README.md": X}, "a data set",
                 "dcsurgery finetune --data"),
    "rows": ({"train.jsonl": b"{}"}, "a data set", "dcsurgery finetune --data"),
    "tokenizer": ({"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "merges.txt": X,
                   "special_tokens_map.json": b"{}"}, "a tokenizer only", "holds the weights"),
    "readme": ({"README.md": X, "LICENSE": X}, "documents only", "holds the weights"),
    "pickles": ({"pytorch_model.bin": X}, "pickles only (pytorch_model.bin)",
                "save_pretrained()"),
}  # fmt: skip


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("name", FOLDERS)
def test_it_is_named_for_what_it_is(name: str, with_config: bool, tmp_path: Path) -> None:
    files, words, step = FOLDERS[name]
    folder = write(tmp_path / "model", files | ({"config.json": CONFIG} if with_config else {}))
    if with_config and name in ("readme", "tokenizer"):
        words, step = "model.safetensors", "holds its weights"
    for call in (dcsurgery.inspect, lambda f: dcsurgery.convert(f, tmp_path / "OUT")):
        with pytest.raises(CheckpointError) as caught:
            call(folder)
        assert words in caught.value.message, caught.value.message
        assert step in caught.value.hint


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is empty"):
        dcsurgery.inspect(tmp_path)
