"""Folders that hold something else than a transformers checkpoint: what it is, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from dcsurgery.checkpoint.checks import parse_object
from dcsurgery.errors import CheckpointError, CheckpointNotFoundError, UnsafeFormatError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
MADE_FROM = "convert the transformers model it was made from; its README names it"
# Of a folder with transformers' own weights, these first kinds alone are asked for.
NOT_THESE = 2
# The first that fits: a pattern of file names, what such a folder is, the next step.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"model_index\.json", "a diffusers pipeline, which makes pictures and reads none",
     "name a vision-language model"),
    (r"modules\.json|config_sentence_transformers\.json", "a sentence-transformers model",
     "name a vision-language model"),
    (r".*\.gguf", "GGUF weights (llama.cpp), which are written from a transformers model",
     MADE_FROM),
    (r"consolidated.*\.(safetensors|pth)|params\.json",
     "a model in the format of Mistral's or Meta's own code (consolidated, params.json)",
     "use its repository in transformers' format, such as mistral-community/pixtral-12b for "
     "mistralai/Pixtral-12B-2409"),
    (r"(.*/)?openvino_.*\.(xml|bin)", "an OpenVINO model", MADE_FROM),
    (r".*\.onnx(_data)?", "an ONNX model", MADE_FROM),
    (r".*\.(engine|plan)|.*trtllm.*", "TensorRT engines", MADE_FROM),
    (r".*\.(mlpackage|mlmodelc?)(/.*)?", "a Core ML model", MADE_FROM),
    (r".*\.tflite|.*\.task|.*\.litertlm", "a LiteRT (TFLite) model", MADE_FROM),
    (r".*\.msgpack|.*\.npz", "JAX or Flax weights", MADE_FROM),
    (r".*\.h5", "TensorFlow weights", MADE_FROM),
    (r".*\.nemo", "a NeMo archive", MADE_FROM),
    (r".*\.(parquet|arrow)|(.*/)?dataset_infos?\.json|(train|test|validation|data)[\w-]*\.jsonl?",
     "a data set", "name a model here, and the data set to `dcsurgery finetune --data`"),
)  # fmt: skip
_PICKLES = r".*\.(bin|pt|pth|ckpt|pkl|pickle)"
_TOKENIZER = r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template)[\w.-]*"
_PAPERS = r"(README|LICEN[CS]E|USE_POLICY|NOTICE|CITATION)[\w.-]*|.*\.(md|txt|pdf|png|jpe?g|gif)"
SAFETENSORS = "load it with transformers and save_pretrained() it once: that writes safetensors"


def refuse_folder(name: str, files: Sequence[str], read: Callable[[str], str]) -> None:
    """Raise for a folder that lacks config.json or safetensors weights, saying what it holds.

    Raises UnsafeFormatError for pickles, CheckpointNotFoundError for all else; returns where the
    files tell nothing.
    """
    if ADAPTER in files:
        base = _base_of(read)
        raise CheckpointNotFoundError(
            f"{name} is an adapter (LoRA) for {base}, not a model",
            hint="merge it first: load that model, then peft.PeftModel.from_pretrained(model, "
            f"{name!r}).merge_and_unload().save_pretrained(MERGED), and name MERGED",
        )
    whole = any(re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", file) for file in files)
    for pattern, what, step in _KINDS[: NOT_THESE if whole else None]:
        if any(re.fullmatch(pattern, file) for file in files):
            raise CheckpointNotFoundError(f"{name} holds {what}", hint=step)
    pickles = [file for file in files if re.fullmatch(_PICKLES, file)]
    if pickles and not whole:
        raise UnsafeFormatError(
            f"{name} holds its weights as pickles only ({', '.join(pickles[:3])}), "
            "which can run code when read",
            hint=SAFETENSORS,
        )
    if not files:
        raise CheckpointNotFoundError(f"{name} is empty", hint="fetch the model again")
    if CONFIG in files:
        return
    rest = [file for file in files if not re.fullmatch(_PAPERS, file)]
    if all(re.fullmatch(_TOKENIZER, file) for file in rest):
        what = "a tokenizer" if rest else "documents"
        raise CheckpointNotFoundError(
            f"{name} holds {what} only, no model", hint="name the folder that holds the weights"
        )


def _base_of(read: Callable[[str], str]) -> str:
    try:
        base = parse_object(read(ADAPTER), ADAPTER).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    return repr(base[:200]) if isinstance(base, str) and base else "a model it does not name"
