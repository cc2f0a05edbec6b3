"""What a training step costs beside transformers' Trainer: python -m tests.benchmarks.training

A LLaVA with a 24-block tower and a 10-layer language model, random weights and a real vocabulary,
gets a connector and is trained twice on the same rows: by `train()`, and by transformers' Trainer
with the same parameters trainable, the same AdamW and the model's own loss. Both run in processes
of their own, by turns; seconds are the processor's, on one thread, so that a busy machine changes
little, and memory is the peak of the resident set, weights included. glibc is told to give large
blocks back at once in both, or what it keeps would be counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.attach import attach
from dcsurgery.connectors.request import Connector
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.training.feeding import Feed
from dcsurgery.training.schedule import make_optimizer, make_scheduler
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trainer import prepare, train
from tests.benchmarks.forward import peak_memory, start_counting

VOCABULARIES = (49152, 151936)
LIMITS = {"speed": 1.3, "memory": 0.6}
VARIANTS = ("trainer", "ours")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"
}  # fmt: skip
WIDTH, TOKENS, WORDS, ANSWER, IMAGE = 512, 256, 64, 32, 5
VISION = {
    "model_type": "clip_vision_model", "hidden_size": WIDTH, "image_size": 224, "patch_size": 14,
    "intermediate_size": 4 * WIDTH, "num_attention_heads": 8, "num_hidden_layers": 24,
    "projection_dim": 8,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "num_hidden_layers": 10, "tie_word_embeddings": True,
}  # fmt: skip


def write_model(folder: Path, vocabulary: int) -> Path:
    """Write the model once; both variants load it."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": vocabulary}
    config = LlavaConfig.from_dict(
        {"vision_config": VISION, "text_config": text, "image_token_index": IMAGE}
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[Any, SurgeryPlan]:
    """Load the model with its connector."""
    from transformers import LlavaForConditionalGeneration

    plan = make_plan(open_checkpoint(folder), Connector("dci"))
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    attach(model, plan.anatomy, plan.layout)
    return model, plan


def make_rows(count: int, vocabulary: int) -> list[dict[str, Tensor]]:
    """Return rows of one image, a question and an answer each."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        words = torch.randint(10, vocabulary, (WORDS,), generator=draw)
        ids = torch.cat([torch.full((TOKENS,), IMAGE), words])
        labels = ids.clone()
        labels[:-ANSWER] = -100
        pixels = torch.randn(3, 224, 224, generator=draw)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
                     "pixel_values": pixels})  # fmt: skip
    return rows


def collate(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join rows of one length."""
    return {key: torch.stack([row[key] for row in found]) for key in found[0]}


class Clock(TrainerCallback):
    """Counts the processor's seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.process_time())

    def seconds(self) -> list[float]:
        """Return the time of every step but the first, which is a warm-up."""
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def run_ours(
    model: Any, plan: SurgeryPlan, rows: Any, settings: TrainingSettings, clock: Clock, place: str
) -> list[float]:
    """Train with train(); return the losses."""
    found = train(model, plan, rows, collate, settings, output_dir=place, callbacks=[clock])
    return [row["loss"] for row in found.history]


def run_trainer(
    model: Any, plan: SurgeryPlan, rows: Any, settings: TrainingSettings, clock: Clock, place: str
) -> list[float]:
    """Train the same parameters with transformers' Trainer alone; return the losses."""
    from transformers import Trainer, TrainingArguments

    steps = settings.max_steps or 0
    trained = prepare(model, plan, Feed(rows, collate), settings)
    optimizer = make_optimizer(model, trained, settings)
    arguments = TrainingArguments(
        place, per_device_train_batch_size=settings.micro_batch, max_steps=steps, use_cpu=True,
        gradient_accumulation_steps=(settings.batch_size or 1) // settings.micro_batch,
        max_grad_norm=settings.max_grad_norm, logging_steps=1, report_to="none",
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, log_level="error",
    )  # fmt: skip
    engine = Trainer(
        model, arguments, train_dataset=rows, data_collator=collate, callbacks=[clock],
        optimizers=(optimizer, make_scheduler(optimizer, settings, steps)),
    )  # fmt: skip
    engine.train()
    return [row["loss"] for row in engine.state.log_history if "loss" in row]


RUNS = {"trainer": run_trainer, "ours": run_ours}


def run_here(asked: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in this process."""
    model, plan = load(asked.folder)
    rows = make_rows(asked.batch, model.config.text_config.vocab_size)
    # One batch: both see the same rows in every step, whatever their order.
    settings = TrainingSettings(
        train=asked.train, batch_size=asked.batch, micro_batch=asked.micro_batch,
        max_steps=asked.steps, warmup=0.0, average=0.0, lora_dropout=0.0, save_steps=0,
        connector_lr=1e-3, grad_checkpointing=False,
    ).resolved()  # fmt: skip
    clock = Clock()
    start_counting()
    with tempfile.TemporaryDirectory() as place:
        losses = RUNS[asked.variant](model, plan, rows, settings, clock, place)
    tokens = asked.batch * (TOKENS + WORDS) / statistics.median(clock.seconds())
    return {"losses": losses, "speed": tokens, "memory": peak_memory()}


def child(variant: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run a variant in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.training", "--variant", variant]
    for name in ("batch", "micro_batch", "steps", "train"):
        command += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
    command += ["--folder", str(folder)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    print(variant, found, file=sys.stderr)
    return found


def compare(vocabulary: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of all rounds and their ratios. Exits where the curves differ."""
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model", vocabulary)
        for turn in range(asked.rounds):
            for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
                runs[variant].append(child(variant, folder, asked))
    curves = [torch.tensor(runs[variant][0]["losses"]) for variant in VARIANTS]
    apart = float(((curves[0] - curves[1]) / curves[0]).abs().max())
    if apart > 1e-5:
        raise SystemExit(f"the two loss curves differ by {apart:.1e} of the loss")
    both = zip(runs["ours"], runs["trainer"], strict=True)
    return {
        **{name: statistics.median(run["speed"] for run in runs[name]) for name in VARIANTS},
        **{f"{name} MB": max(run["memory"] for run in runs[name]) / 1e6 for name in VARIANTS},
        "speed": statistics.median(ours["speed"] / other["speed"] for ours, other in both),
        "memory": max(run["memory"] for run in runs["ours"])
        / max(run["memory"] for run in runs["trainer"]),
        "curves": apart,
    }


def main() -> int:
    """Run the benchmark, print its table; exit 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--train", default="projector", help="as in finetune")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.variant:
        print(json.dumps(run_here(asked)))
        return 0
    print("| vocabulary | Trainer, tokens/s | ours | ratio | Trainer, peak MB | ours | ratio "
          "| curves differ by |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    missed = []
    for vocabulary in asked.vocabulary:
        found = compare(vocabulary, asked)
        print(f"| {vocabulary:,} | {found['trainer']:.0f} | {found['ours']:.0f} "
              f"| {found['speed']:.2f} | {found['trainer MB']:,.0f} | {found['ours MB']:,.0f} "
              f"| {found['memory']:.2f} | {found['curves']:.0e} |", flush=True)  # fmt: skip
        if found["speed"] < LIMITS["speed"] or found["memory"] > LIMITS["memory"]:
            missed.append(vocabulary)
    if missed:
        print(f"missed at {missed}: the limits are {LIMITS}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
