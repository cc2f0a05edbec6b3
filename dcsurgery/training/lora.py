"""LoRA on the language model, by peft, inside the loaded model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcsurgery.errors import TrainingError
from dcsurgery.surgery.plan_file import ADAPTED, ADAPTER_WEIGHTS, PEFT_MODEL
from dcsurgery.training.freeze import language_path
from dcsurgery.training.settings import TrainingSettings


def lora_targets(model: Any) -> str:
    """Return the pattern of all linear layers of the language model, its head excluded.

    It names the module that holds the language model and the last parts of the layers' names, so
    that it fits where other versions of transformers put that module deeper. Raises TrainingError.
    """
    path = language_path(model)
    head = model.get_output_embeddings()
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and name.startswith(path + ".")
    }
    if not linear:
        raise TrainingError(
            f"the language model of {type(model).__name__} has no linear layers for LoRA",
            hint="use --train projector or full",
        )
    names = "|".join(sorted({re.escape(name.rpartition(".")[2]) for name in linear}))
    last = re.escape(path.rpartition(".")[2])
    return rf"(?:.*\.)?{last}\.(?:.*\.)?(?:{names})"


def add_adapters(model: Any, settings: TrainingSettings) -> None:
    """Put LoRA beside every linear layer of the language model, in place; at first it adds nothing.

    The model keeps its class; a wrapped layer's own parameters gain `base_layer` in their names. An
    adapter of an earlier training stays, to be trained further. Raises TrainingError where settings
    ask for another one.
    """
    if getattr(model, "peft_config", None):
        _check_adapters(model, settings)
        return
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=lora_targets(model),
        bias="none",
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(config, model)
    model._hf_peft_config_loaded = True
    model.peft_config = {"default": config}


def _check_adapters(model: Any, settings: TrainingSettings) -> None:
    """Refuse what was asked for, and is no default, of an adapter that is there already."""
    for key, found in describe_adapters(model).items():
        wanted = getattr(settings, f"lora_{key}")
        if wanted not in (found, getattr(TrainingSettings, f"lora_{key}")):
            raise TrainingError(
                f"the model has a LoRA adapter of {key} {found:g}, not {wanted:g}",
                hint=f"leave out --lora-{key}, or train the model from before that adapter",
            )


def merge_adapters(model: Any) -> tuple[str, ...]:
    """Add an adapter to the weights beside it and take it off; return their names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [
        (n, module) for n, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    for name, module in found:
        module.merge()
        model.set_submodule(name, module.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    return tuple(f"{name}.weight" for name, _ in found)


@contextmanager
def taken_for_adapted(model: Any) -> Iterator[None]:
    """Let transformers' Trainer take a quantised model whose new weights stand beside it.

    It refuses quantised models without adapters, which it knows by this mark.
    """
    before = getattr(model, "_hf_peft_config_loaded", False)
    model._hf_peft_config_loaded = before or bool(getattr(model, "is_quantized", False))
    try:
        yield
    finally:
        model._hf_peft_config_loaded = before


def describe_adapters(model: Any) -> dict[str, Any]:
    """Return what is to be known of the adapter of a model."""
    config = model.peft_config["default"]
    return {"rank": config.r, "alpha": config.lora_alpha, "dropout": config.lora_dropout}


def restore_adapters(model: Any, folder: Path) -> None:
    """Give a loaded adapter the values of peft's files in fp32, as add_adapters makes a new one.

    It was loaded in the dtype of the base. Other versions may have put the modules deeper.
    """
    from safetensors.torch import load_file

    stored = {
        name.removeprefix(PEFT_MODEL): value
        for name, value in load_file(folder / ADAPTER_WEIGHTS).items()
    }
    for name, parameter in model.named_parameters():
        plain = name.replace(".default.", ".")
        same = [k for k in stored if f".{k}".endswith(f".{plain}") or plain.endswith(f".{k}")]
        if ADAPTED in name and len(same) == 1:
            parameter.data = stored[same[0]].to(parameter.device, torch.float32)


def save_adapters(model: Any, folder: Path) -> None:
    """Write peft's own files: adapter_config.json and adapter_model.safetensors."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model)
    tensors = {
        PEFT_MODEL + name: value.detach().cpu().contiguous() for name, value in state.items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    model.peft_config["default"].save_pretrained(folder)
