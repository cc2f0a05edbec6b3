"""The options of a training: every field of TrainingSettings, and where its data comes from.

None means that the setting's own default holds, which depends on --stage and --train.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dcsurgery.cli.options import Columns


@dataclass(frozen=True)
class DataOptions:
    """What to train on."""

    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            help="JSON, JSONL, CSV, TSV, parquet or arrow: a file, FILE,FILE or a folder; a saved "
            "data set, or a Hub data set's id. docs/data.md shows the rows that are read.",
        ),
    ]
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder that image paths start from. Default: that of DATA."
        ),
    ] = None
    columns: Columns = None
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Split of a Hugging Face data set.")
    ] = "train"
    streaming: Annotated[
        bool,
        typer.Option("--streaming", help="Read a Hub data set as it arrives; needs --max-steps."),
    ] = False


@dataclass(frozen=True)
class TrainOptions:
    """Which parameters, in which numbers."""

    train: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="connector: the new matrix alone. projector: the projector too. lora: LoRA on the "
            "language model as well. full: the whole language model. Default: projector; "
            "full with --stage 2.",
        ),
    ] = None
    train_tower: Annotated[
        bool,
        typer.Option("--train-tower", help="Train the vision tower too, with --tower-lr."),
    ] = False
    stage: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The paper's recipe: 1 (projector, rate 1e-3, batches of 256) or 2 (full, 2e-5, "
            "128; with --train lora 2e-4, projector 2e-5). Other options override it.",
        ),
    ] = None
    lora_rank: Annotated[
        int | None, typer.Option(metavar="N", help="Rank of LoRA. Default: 128.")
    ] = None
    lora_alpha: Annotated[
        int | None, typer.Option(metavar="N", help="LoRA is scaled by alpha / rank. Default: 256.")
    ] = None
    lora_dropout: Annotated[
        float | None, typer.Option(metavar="P", help="Dropout in front of LoRA. Default: 0.05.")
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="bf16, fp16 or fp32 for the base; what is trained is always fp32. Default: "
            "bf16 on a GPU that has it, else fp16; fp32 without a GPU.",
        ),
    ] = None
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="BITS", help="4bit keeps the language model in 4 bits (bitsandbytes, GPU)."
        ),
    ] = None
    grad_checkpointing: Annotated[
        bool | None,
        typer.Option(
            help="Compute activations twice instead of keeping them. Default: on a GPU.",
        ),
    ] = None


@dataclass(frozen=True)
class RateOptions:
    """How fast each group of parameters learns, and when."""

    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", help="Peak rate of the language model, LoRA included. Default: 2e-5."
        ),
    ] = None
    connector_lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Peak rate of the new matrix. Default: 2e-4."),
    ] = None
    projector_lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Peak rate of the projector. Default: 1e-4."),
    ] = None
    tower_lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Peak rate of the vision tower. Default: 2e-6."),
    ] = None
    warmup: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the steps in which rates climb. Default: 0.3; 0.03 with --stage.",
        ),
    ] = None
    connector_warmup: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The same for the new matrix alone.")
    ] = None
    projector_warmup: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The same for the projector alone.")
    ] = None
    connector_delay: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Share of the steps in which the new matrix rests. Default: 0."
        ),
    ] = None
    projector_delay: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Share of the steps in which the projector rests. Default: 0."
        ),
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(metavar="RATE", help="AdamW's weight decay. Default: 0.")
    ] = None
    average: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Keep a running average of connector and projector, this share of the steps long, "
            "instead of the last weights. Default: 0.17; 0, none, with --stage or a language "
            "model in training.",
        ),
    ] = None
    max_grad_norm: Annotated[
        float | None,
        typer.Option(metavar="NORM", help="Gradients are cut to this norm; 0: never. Default: 1."),
    ] = None


@dataclass(frozen=True)
class ScheduleOptions:
    """How long, in which batches and order, and what is written on the way."""

    epochs: Annotated[
        float | None, typer.Option(metavar="N", help="Passes over the data. Default: 1.")
    ] = None
    max_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after so many updates instead.")
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Rows of an update, over all processes. Default: 128; --stage 1: 256."
        ),
    ] = None
    micro_batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rows in memory at a time, at most. Default: 4."),
    ] = None
    group_by_length: Annotated[
        bool | None,
        typer.Option(help="Rows of like length in one batch. Default: with --stage 2."),
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens of a row; longer ones lose text from their end, never an image. "
            "Default: 2048.",
        ),
    ] = None
    max_bad: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Rows that may be unusable, of all rows. Default: 1%."),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="auto: the model's chat template, v1 where it has none. plain, v1: LLaVA's own.",
        ),
    ] = None
    aspect: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="processor: pictures as the model's processor shapes them. pad: padded to squares "
            "first, as LLaVA's second stage does.",
        ),
    ] = None
    orientation: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="exif: pictures are turned as their EXIF tag says, as viewers do. raw: they stay "
            "as they are stored, as in LLaVA's own code. Default: exif.",
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of order and dropout. Default: 0.")
    ] = None
    save_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Steps between checkpoints; 0: none. Default: a tenth of all."
        ),
    ] = None
    report_to: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Also report to wandb, tensorboard, ...: transformers' names."
        ),
    ] = None


@dataclass(frozen=True)
class SettingOptions(ScheduleOptions, RateOptions, TrainOptions):
    """All fields of TrainingSettings."""


@dataclass(frozen=True)
class FreshConnector:
    """The connector that an unconverted model gets on the way: as `dcsurgery convert` does it."""

    connector: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Connector for a MODEL that has none yet, as in `dcsurgery convert`: dci, sci, "
            "sti or mix.",
        ),
    ] = None
    groups: Annotated[
        int | None, typer.Option(metavar="N", help="Number of groups of that connector.")
    ] = None
    layers: Annotated[
        str | None, typer.Option(metavar="LAYERS", help="Hidden states that it reads.")
    ] = None
    norm: Annotated[
        bool, typer.Option("--norm", help="A LayerNorm on every state it adds (sci).")
    ] = False
    pool: Annotated[
        int | None,
        typer.Option(metavar="N", help="2 keeps a quarter of the image tokens, 1 all."),
    ] = None
    init: Annotated[
        str | None, typer.Option(metavar="INIT", help="Its start: preserve or paper.")
    ] = None
    form: Annotated[
        str | None, typer.Option(metavar="FORM", help="Form of OUT: stock or delta.")
    ] = None

    def keywords(self, seed: int) -> dict[str, Any] | None:
        """Return make_spec's keywords; None when no connector is asked for.

        Raises BadParameter for an option that needs --connector.
        """
        given = {key: value for key, value in asdict(self).items() if value}
        if self.connector is None:
            for key in given:
                raise typer.BadParameter("needs --connector", param_hint=f"--{key}")
            return None
        return {**given, "seed": seed}
