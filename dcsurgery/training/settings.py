"""What a training is told: one field per option of `finetune`, and the defaults behind them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dcsurgery.data.pictures import Orientation
from dcsurgery.errors import RequestError

Train = Literal["connector", "projector", "lora", "full"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

# The paper's stages (arXiv 2405.13800, scripts/v1_5 of its code): connector and projector on
# captions, then the language model too. They were made for a model that has seen no images yet.
STAGES: dict[int, dict[str, Any]] = {
    1: {"train": "projector", "lr": 1e-3, "batch_size": 256},
    2: {"train": "full", "lr": 2e-5, "batch_size": 128, "group_by_length": True},
}
# The paper's LoRA: the language model's adapters fast, what was trained before slowly.
LORA: dict[str, Any] = {"lr": 2e-4, "connector_lr": 2e-5, "projector_lr": 2e-5}
# A connector for a model that works already, when no stage is asked for (docs/rates.md:
# warm-up and average were measured on small models, the rates are theirs scaled to CLIP-L's width).
RETROFIT: dict[str, Any] = {
    "train": "projector",
    "lr": 2e-5,
    "connector_lr": 2e-4,
    "projector_lr": 1e-4,
    "batch_size": 128,
    "warmup": 0.3,
    "average": 0.17,
}
# Where nothing above says otherwise.
GENERAL: dict[str, Any] = {"group_by_length": False, "warmup": 0.03, "average": 0.0}


class TrainingSettings(BaseModel):
    """Everything about a training but its model and data.

    Rates are peaks of AdamW's learning rate; None takes the stage's, then the general default (see
    `resolved`). `lr` is the language model's (LoRA included), `connector_lr` the new matrix's.
    `batch_size` is global: over all processes and accumulated micro-batches of `micro_batch` rows.
    Warm-ups and delays are fractions of all steps: a group rests for its delay, climbs for its
    warm-up, and falls as a cosine to zero at the end. `average` is the lag of the running average
    that a training leaves behind, in parts of all steps; 0 leaves the last weights. `save_steps`
    counts steps between checkpoints: None takes a tenth of the training, 0 writes none. `prompt`
    "auto" is the model's chat template; "plain" and "v1" are LLaVA's of its first and second stage.
    `aspect` "pad" pads pictures to squares, as LLaVA's second stage does. `orientation` "raw"
    leaves pictures as they are stored, whatever their EXIF tag says, as LLaVA's own code does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Train | None = None
    train_tower: bool = False
    stage: Literal[1, 2] | None = None
    lr: float | None = Field(default=None, ge=0)
    connector_lr: float | None = Field(default=None, ge=0)
    projector_lr: float | None = Field(default=None, ge=0)
    tower_lr: float = Field(default=2e-6, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float | None = Field(default=None, ge=0, lt=1)
    connector_warmup: float | None = Field(default=None, ge=0, lt=1)
    projector_warmup: float | None = Field(default=None, ge=0, lt=1)
    connector_delay: float = Field(default=0.0, ge=0, lt=1)
    projector_delay: float = Field(default=0.0, ge=0, lt=1)
    average: float | None = Field(default=None, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, ge=0)
    lora_rank: int = Field(default=128, ge=1)
    lora_alpha: int = Field(default=256, ge=1)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    micro_batch: int = Field(default=4, ge=1)
    group_by_length: bool | None = None
    max_length: int = Field(default=2048, ge=1)
    max_bad: float = Field(default=0.01, ge=0, le=1)
    prompt: Literal["auto", "plain", "v1"] = "auto"
    aspect: Literal["processor", "pad"] = "processor"
    orientation: Orientation = "exif"
    seed: int = Field(default=0, ge=0)
    precision: Precision = "auto"
    quantize: Literal["4bit"] | None = None
    grad_checkpointing: bool | None = None
    save_steps: int | None = Field(default=None, ge=0)
    report_to: str | None = None

    @field_validator("max_bad", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        """Accept "1%" beside 0.01."""
        if isinstance(value, str) and value.strip().endswith("%"):
            return float(value.strip()[:-1]) / 100
        return value

    def resolved(self) -> TrainingSettings:
        """Return a copy in which no rate, batch size or choice of parameters is None.

        What was set stays; then come the stage's values, those of LoRA, and the general ones.
        """
        preset = dict(STAGES[self.stage]) if self.stage else dict(RETROFIT)
        train = self.train or preset["train"]
        if train == "lora":
            preset |= LORA
        if train in ("lora", "full"):
            # Of a language model it would take as much memory again.
            preset["average"] = 0.0
        rate = preset["lr"] if self.lr is None else self.lr
        filled: dict[str, Any] = {"connector_lr": rate, "projector_lr": rate}
        filled |= GENERAL | preset | {"train": train}
        for name, value in self.model_dump().items():
            if value is not None:
                filled[name] = value
        for name in ("connector", "projector"):
            key = f"{name}_warmup"
            filled.setdefault(key, filled["warmup"])
        return TrainingSettings(**filled)


def make_settings(**values: Any) -> TrainingSettings:
    """Return TrainingSettings from plain values. Raises RequestError, naming the field."""
    try:
        return TrainingSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "extra_forbidden" else f" {first['input']!r}"
        raise RequestError(
            f"{name}{given}: {first['msg'].lower()}",
            hint="`dcsurgery finetune --help` explains every setting",
        ) from None
