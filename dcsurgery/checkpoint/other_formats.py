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
    (r".*\.gguf|Modelfile", "GGUF weights (llama.cpp), which are written from a transformers model",
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
    (r"output(-\d+-of-\d+)?\.safetensors", "weights of ExLlama (EXL2 or EXL3)", MADE_FROM),
    (r"(.*/)?(mp_rank|zero_pp_rank|bf16_zero)\w*_(model|optim)_states\.pt",
     "a training's state, split by DeepSpeed",
     "put it together with its own zero_to_fp32.py and --safe_serialization, config.json beside "
     "the result, and name that folder"),
    (r"(.*/)?[\w-]+\.distcp", "a training's state, split by FSDP",
     "put it together with `accelerate merge-weights FOLDER MERGED`, config.json beside the "
     "result, and name MERGED"),
    (r".*\.(parquet|arrow)|(.*/)?dataset_infos?\.json"
     r"|(train|test|validation|data)(?!er_state|ing_args|_results)[\w-]*\.jsonl?",
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
    _refuse_kinds(name, files, _KINDS[:NOT_THESE])
    inside = [file.removesuffix(f"/{CONFIG}") for file in files if file.endswith(f"/{CONFIG}")]
    if inside and CONFIG not in files:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        raise CheckpointNotFoundError(
            f"{name} is not a model, but holds some: {', '.join(inside[:3])}{more}",
            hint=f"name one of these folders on this machine, such as {name}/{inside[-1]}",
        )
    if not whole:
        _refuse_kinds(name, files, _KINDS[NOT_THESE:])
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


def refuse_parts(
    name: str, parts: Sequence[str], files: Sequence[str], read: Callable[[str], str]
) -> None:
    """Raise CheckpointNotFoundError for what a training of LLaVA leaves beside a model."""
    key = ("base_model_name_or_path", ADAPTER) if ADAPTER in files else ("_name_or_path", CONFIG)
    base = _base_of(read, *key)
    raise CheckpointNotFoundError(
        f"{name} is not a whole model: it holds {', '.join(parts[:3])}, trained on {base}",
        hint="merge it with the code that trained it, and name MERGED; LLaVA's is `python "
        f"scripts/merge_lora_weights.py --model-path {name} --model-base BASE "
        "--save-model-path MERGED`",
    )


def _refuse_kinds(name: str, files: Sequence[str], kinds: Sequence[tuple[str, str, str]]) -> None:
    for pattern, what, step in kinds:
        if any(re.fullmatch(pattern, file) for file in files):
            raise CheckpointNotFoundError(f"{name} holds {what}", hint=step)


def _base_of(
    read: Callable[[str], str], key: str = "base_model_name_or_path", file: str = ADAPTER
) -> str:
    try:
        base = parse_object(read(file), file).get(key)
    except CheckpointError:
        base = None
    return repr(base[:200]) if isinstance(base, str) and base else "a model it does not name"
