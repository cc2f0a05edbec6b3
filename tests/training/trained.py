"""Trainings without an engine: parameters moved by hand, written as an engine would."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.loading.load import load_for_training
from dcsurgery.surgery.plan_file import SurgeryPlan, TrainingRecord
from dcsurgery.training.trained_files import write_trained
from tests.architectures.inputs import llava_inputs

MATRIX = "dense_connector.weight"
LANGUAGE_MODEL = r".*language_model.*\.(q_proj|v_proj|down_proj)"


def a_record(**values: Any) -> TrainingRecord:
    """What an engine would say about a training."""
    return TrainingRecord.model_validate(
        {
            "train": "projector",
            "trained": [],
            "trained_parameters": 1,
            "data": "rows.json",
            "data_sha256": "0" * 64,
            "rows": 8,
            "skipped_rows": 0,
            "seed": 0,
            "steps": 300,
            "epochs": 1.0,
            "batch_size": 8,
            "settings": {},
            "first_loss": 2.0,
            "last_loss": 1.0,
            "seconds": 1.0,
            "device": "cpu",
            "versions": {},
        }
        | values
    )


def move(model: Any, names: Sequence[str], seed: int = 3) -> list[str]:
    """Move parameters of a model as a training would; return their names."""
    draw = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            value = parameters[name]
            value.add_(0.2 * torch.randn(value.shape, generator=draw).to(value))
    return list(names)


def of_stage_one(model: Any) -> list[str]:
    """The parameters of stage 1: connector and projector."""
    return [n for n, _ in model.named_parameters() if "projector" in n or "dense_connector" in n]


def stage_one(folder: Path, output: Path, **options: Any) -> tuple[Any, SurgeryPlan]:
    """Train connector and projector of a converted folder; return the model and OUT's plan."""
    model, plan = load_for_training(folder)
    trained = move(model, of_stage_one(model))
    given = {"plan": plan, "model": model, "trained": trained, "source": folder, **options}
    return model, write_trained(output, record=a_record(), **given).plan


def with_lora(model: Any, folder: Path, **options: Any) -> Any:
    """Put a LoRA adapter that is not zero around a model, and its files into a folder."""
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE_MODEL, **options}
    with warnings.catch_warnings():
        # peft asks transformers in words that transformers has retired.
        warnings.simplefilter("ignore", FutureWarning)
        wrapped = get_peft_model(model, LoraConfig(**config))
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=draw))
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped


def train_lora(folder: Path, output: Path, work: Path, **options: Any) -> Any:
    """Train connector, projector and LoRA of a converted folder; return peft's model."""
    model, plan = load_for_training(folder)
    wrapped = with_lora(model, work, **options)
    trained = move(wrapped, of_stage_one(wrapped))
    write_trained(
        output,
        plan=plan,
        model=wrapped,
        trained=trained,
        record=a_record(train="lora", adapter={"r": 4}),
        adapter=work,
        source=folder,
    )
    return wrapped.eval()


def logits(model: Any, batch: int = 2, images: int = 1) -> Tensor:
    """Logits of a tiny LLaVA."""
    with torch.no_grad():
        found: Tensor = model(**llava_inputs(model, batch, images)).logits
    return found
