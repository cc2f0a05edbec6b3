"""transformers' arguments for a training."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from dcsurgery.training.feeding import micro_batches
from dcsurgery.training.job import Job
from dcsurgery.training.workers import worker_count


def training_arguments(job: Job, folder: Path, precision: str) -> TrainingArguments:
    """Return transformers' arguments for a job that writes its checkpoints into `folder`."""
    settings = job.settings
    rows, count = micro_batches(settings)
    saves = settings.save_steps
    gap = max(1, job.steps // 10) if saves is None else saves
    gpu = torch.cuda.is_available()
    workers = worker_count(settings, streamed=job.feed.streamed)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=count,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        # The engine computes in bf16 by itself: accelerate would copy all logits to fp32, and
        # DeepSpeed round the weights first.
        fp16=precision == "fp16",
        use_cpu=not gpu and not torch.backends.mps.is_available(),
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if gap else "no",
        save_steps=gap or 500,
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=gpu,
        dataloader_num_workers=workers,
        dataloader_multiprocessing_context="fork" if workers else None,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=True,
        accelerator_config={"dispatch_batches": False},
        log_level="error",
    )
