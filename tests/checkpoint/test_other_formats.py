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
    "rows of another name": ({"train_00001.jsonl": b"{}"}, "a data set", "finetune --data"),
    "ollama": ({"Modelfile": b"FROM x", "blobs/sha256-0": X}, "GGUF", "made from"),
    "exllama": ({"output-00001-of-00002.safetensors": X}, "ExLlama", "made from"),
    "deepspeed": ({"global_step9/mp_rank_00_model_states.pt": X, "latest": b"global_step9"},
                  "split by DeepSpeed", "zero_to_fp32.py"),
    "zero": ({"global_step9/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": X},
             "split by DeepSpeed", "zero_to_fp32.py"),
    "fsdp": ({"pytorch_model_fsdp_0/__0_0.distcp": X}, "split by FSDP",
             "accelerate merge-weights"),
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


MODEL = {"config.json": CONFIG, "model.safetensors": X, "optimizer.pt": X}


@pytest.mark.parametrize(
    "beside", [{}, {"trainer_state.json": b"{}", "training_args.bin": X, "train_results.json": X}]
)
@pytest.mark.parametrize("inside", ["checkpoint-100", "snapshots/0123456789abcdef"])
def test_a_folder_around_models_names_them(
    inside: str, beside: dict[str, bytes], tmp_path: Path
) -> None:
    folder = write(tmp_path / "run", beside | {f"{inside}/{k}": v for k, v in MODEL.items()})
    with pytest.raises(CheckpointError) as caught:
        dcsurgery.inspect(folder)
    assert f"holds some: {inside}" in caught.value.message
    assert f"run/{inside}" in caught.value.hint


def test_a_pointer_of_git_lfs_is_said_to_be_one(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    folder = write(tmp_path / "model", {"config.json": CONFIG, "model.safetensors": pointer})
    with pytest.raises(CheckpointError, match="pointer of Git LFS") as caught:
        dcsurgery.inspect(folder)
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "base"),
    [
        ({"adapter_config.json": ADAPTER, "adapter_model.bin": X, "non_lora_trainables.bin": X},
         "'llava-hf/llava-1.5-7b-hf'"),
        ({"mm_projector.bin": X}, "'lmsys/vicuna-7b-v1.5'"),
    ],
)  # fmt: skip
def test_parts_of_an_original_name_their_base_and_how_to_merge(
    files: dict[str, bytes], base: str, tmp_path: Path
) -> None:
    config = {"architectures": ["LlavaLlamaForCausalLM"], "_name_or_path": "lmsys/vicuna-7b-v1.5"}
    config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"
    folder = write(tmp_path / "model", files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(CheckpointError) as caught:
        dcsurgery.inspect(folder)
    assert f"trained on {base}" in caught.value.message
    assert "merge_lora_weights.py --model-path" in caught.value.hint
