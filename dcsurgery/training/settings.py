"""What a training is told: one field per option of `finetune`, and the defaults behind them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from dcsurgery.fields import Told, check_fields, percent

Train = Literal["connector", "projector", "lora", "full"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
# What may change when a training goes on: neither what is learnt nor in which order.
FREE = frozenset(
    {"save_steps", "report_to", "micro_batch", "grad_checkpointing", "max_bad", "workers"}
)

# What says how rows become batches, and in which precision a model reads them.
READING = (
    "max_length", "max_bad", "prompt", "aspect", "orientation", "precision", "quantize",
)  # fmt: skip

# The paper's stages (arXiv 2405.13800, scripts/v1_5 of its code): connector and projector on
# captions, then the language model too. They were made for a model that has seen no images yet.
STAGES: dict[int, dict[str, Any]] = {
    1: {"train": "projector", "lr": 1e-3, "batch_size": 256, "prompt": "plain"},
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
GENERAL: dict[str, Any] = {
    "group_by_length": False,
    "warmup": 0.03,
    "average": 0.0,
    "prompt": "auto",
}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything about a training but its model and data: the options of `dcsurgery finetune`.

    Rates are peaks of AdamW's learning rate, which climbs for the warm-up and falls as a cosine to
    zero; None takes the stage's, then the general default (see `resolved`). `batch_size` is global:
    over all processes and accumulated micro-batches. Raises RequestError for what cannot be meant.
    """

    train: Annotated[
        Train | None,
        Told(
            "connector: the new matrix alone. projector: the projector too. lora: LoRA on the "
            "language model as well. full: the whole language model. Default: projector; full with "
            "--stage 2.",
            "WHAT",
        ),
    ] = None
    train_tower: Annotated[bool, Told("Train the vision tower too, with --tower-lr.")] = False
    stage: Annotated[
        Literal[1, 2] | None,
        Told(
            "The paper's recipe: 1 (projector, rate 1e-3, batches of 256) or 2 (full, 2e-5, 128; "
            "with --train lora 2e-4, projector 2e-5). Other options override it."
        ),
    ] = None
    lr: Annotated[
        float | None,
        Told("Peak rate of the language model, LoRA included. Default: 2e-5.", "RATE", least=0),
    ] = None
    connector_lr: Annotated[
        float | None,
        Told("Peak rate of the new matrix; 0 leaves it alone. Default: 2e-4.", "RATE", least=0),
    ] = None
    projector_lr: Annotated[
        float | None, Told("Peak rate of the projector. Default: 1e-4.", "RATE", least=0)
    ] = None
    tower_lr: Annotated[float, Told("Peak rate of the vision tower.", "RATE", least=0)] = 2e-6
    weight_decay: Annotated[float, Told("AdamW's weight decay.", "RATE", least=0)] = 0.0
    warmup: Annotated[
        float | None,
        Told(
            "Share of the steps in which rates climb. Default: 0.3; 0.03 with --stage.",
            "SHARE", least=0, below=1,
        ),
    ] = None  # fmt: skip
    average: Annotated[
        float | None,
        Told(
            "Keep a running average of connector and projector, this share of the steps long, "
            "instead of the last weights. Default: 0.17; 0, none, with --stage or a language model "
            "in training.",
            "SHARE", least=0, below=1,
        ),
    ] = None  # fmt: skip
    max_grad_norm: Annotated[
        float, Told("Gradients are cut to this norm; 0: never.", "NORM", least=0)
    ] = 1.0
    lora_rank: Annotated[int, Told("Rank of LoRA.", least=1)] = 128
    lora_alpha: Annotated[int, Told("LoRA is scaled by alpha / rank.", least=1)] = 256
    lora_dropout: Annotated[
        float, Told("Dropout in front of LoRA.", "P", least=0, below=1)
    ] = 0.05  # fmt: skip
    epochs: Annotated[float, Told("Passes over the data.", above=0)] = 1.0
    max_steps: Annotated[int | None, Told("Stop after so many updates instead.", least=1)] = None
    batch_size: Annotated[
        int | None,
        Told("Rows of an update, over all processes. Default: 128; --stage 1: 256.", least=1),
    ] = None
    micro_batch: Annotated[int, Told("Rows in memory at a time, at most.", least=1)] = 4
    group_by_length: Annotated[
        bool | None, Told("Rows of like length in one batch. Default: with --stage 2.")
    ] = None
    max_length: Annotated[
        int,
        Told("Tokens of a row; longer ones lose text from their end, never an image.", least=1),
    ] = 2048
    max_bad: Annotated[
        float | str,
        Told("Rows that may be unusable before it is an error: 1, 0.5%.", "PERCENT", read=percent),
    ] = 1.0
    prompt: Annotated[
        Literal["auto", "plain", "v1"] | None,
        Told(
            "auto: the model's chat template, v1 where it has none. plain, v1: LLaVA's own, of its "
            "first and second stage. Default: auto; plain in the first stage.",
            "KIND",
        ),
    ] = None
    aspect: Annotated[
        Literal["processor", "pad"],
        Told(
            "processor: pictures as the model's processor shapes them. pad: padded to squares "
            "first, as LLaVA's second stage does.",
            "KIND",
        ),
    ] = "processor"
    orientation: Annotated[
        Literal["exif", "raw"],
        Told(
            "exif: pictures are turned as their EXIF tag says, as viewers do. raw: they stay as "
            "they are stored, as in LLaVA's own code.",
            "KIND",
        ),
    ] = "exif"
    seed: Annotated[int, Told("Seed of order and dropout.", least=0)] = 0
    precision: Annotated[
        Precision,
        Told(
            "bf16, fp16 or fp32 for the base; what is trained is always fp32. auto: bf16 on a GPU "
            "that has it, else fp16; fp32 without a GPU.",
            "KIND",
        ),
    ] = "auto"
    quantize: Annotated[
        Literal["4bit", "8bit"] | None,
        Told("4bit, 8bit: the frozen language model in so many bits (bitsandbytes).", "BITS"),
    ] = None
    grad_checkpointing: Annotated[
        bool | None,
        Told("Compute activations twice instead of keeping them. Default: on a GPU."),
    ] = None
    workers: Annotated[
        int | None,
        Told(
            "Processes that read and encode rows, each process of the training its own; 0: the "
            "training does it. Rows stay the same. Default: by cores, 4 at most; 0 without a GPU.",
            least=0,
        ),
    ] = None
    save_steps: Annotated[
        int | None, Told("Steps between checkpoints; 0: none. Default: a tenth of all.", least=0)
    ] = None
    report_to: Annotated[
        str | None,
        Told("Also report to wandb, tensorboard, ...: transformers' names.", "NAME"),
    ] = None

    # pydantic, which recipes are read with, takes this class as it is.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        check_fields(self)

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
        filled |= {name: value for name, value in asdict(self).items() if value is not None}
        return TrainingSettings(**filled)
