"""What a connector-only training step costs: python -m tests.benchmarks.training

A LLaVA with a 24-block tower and a small language model, random weights, trained two ways: by
`train()` (running sums, logits of supervised positions alone), and as the same step is written
plainly with transformers: all hidden states kept and stacked, logits of every position. Steps
alternate in time by rounds; peak memory (resident set, weights included) is each variant's own
process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.attach import attach
from dcsurgery.connectors.request import Connector
from dcsurgery.surgery.plan import make_plan
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trainer import train
from tests.benchmarks.forward import peak_memory, start_counting

LIMITS = {"time": 0.9, "memory": 0.7}
VARIANTS = ("plain", "ours")
WIDTH, TOKENS, WORDS, ANSWER, IMAGE = 512, 256, 64, 32, 5
VISION = {
    "model_type": "clip_vision_model", "hidden_size": WIDTH, "image_size": 224, "patch_size": 14,
    "intermediate_size": 4 * WIDTH, "num_attention_heads": 8, "num_hidden_layers": 24,
    "projection_dim": 8,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "vocab_size": 32000,
    "num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": 4,
}  # fmt: skip


def write_model(folder: Path) -> Path:
    """Write the model once; both variants load it."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    config = LlavaConfig.from_dict(
        {"vision_config": VISION, "text_config": TEXT, "image_token_index": IMAGE}
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    """Load the unmodified model."""
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(folder)


def make_batch(rows: int) -> dict[str, torch.Tensor]:
    """Return a batch of one image, a question and an answer each."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(10, 32000, (rows, WORDS), generator=draw)
    ids = torch.cat([torch.full((rows, TOKENS), IMAGE), words], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -ANSWER:] = ids[:, -ANSWER:]
    pixels = torch.randn(rows, 3, 224, 224, generator=draw)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels,
        "pixel_values": pixels,
    }  # fmt: skip


class Plain:
    """The step as one writes it without dcsurgery."""

    def __init__(self, folder: Path) -> None:
        self.model = load(folder)
        self.model.requires_grad_(False)
        self.new = torch.nn.Linear(2 * WIDTH, TEXT["hidden_size"], bias=False)
        torch.nn.init.zeros_(self.new.weight)
        self.optimizer = torch.optim.AdamW(self.new.parameters(), lr=1e-3, weight_decay=0.0)

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Train once on a batch; return the loss."""
        inner = self.model.model
        found = inner.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states
        states = [state[:, 1:] for state in found]
        groups = [torch.stack(states[i : i + 12]).mean(dim=0) for i in (0, 12)]
        projector = inner.multi_modal_projector
        first = projector.linear_1(states[23]) + self.new(torch.cat(groups, dim=-1))
        features = projector.linear_2(projector.act(first))
        words = inner.get_input_embeddings()(batch["input_ids"])
        mask = (batch["input_ids"] == IMAGE)[..., None].expand_as(words)
        language = inner.language_model
        embeds = words.masked_scatter(mask, features)
        hidden = language(inputs_embeds=embeds, attention_mask=batch["attention_mask"])[0]
        logits = self.model.lm_head(hidden)
        loss = self.model.loss_function(
            logits=logits, labels=batch["labels"], vocab_size=TEXT["vocab_size"]
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.new.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def run_plain(folder: Path, rows: int, steps: int) -> tuple[list[float], list[float]]:
    """Return losses and seconds of every step."""
    plain, batch = Plain(folder), make_batch(rows)
    start_counting()
    losses, seconds = [], []
    for _ in range(steps):
        started = time.perf_counter()
        losses.append(plain.step(batch))
        seconds.append(time.perf_counter() - started)
    return losses, seconds


def run_ours(folder: Path, rows: int, steps: int) -> tuple[list[float], list[float]]:
    """Return losses and seconds of every step, the engine's own work included."""
    plan = make_plan(open_checkpoint(folder), Connector("dci"))
    model = load(folder)
    attach(model, plan.anatomy, plan.layout)
    batch = make_batch(rows)
    data = [{key: value[i] for key, value in batch.items()} for i in range(rows)]
    settings = TrainingSettings(
        train="connector", batch_size=rows, micro_batch=rows, max_steps=steps, warmup=0.0,
        connector_lr=1e-3, save_steps=0, grad_checkpointing=False,
    )  # fmt: skip

    def collate(found: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([row[key] for row in found]) for key in found[0]}

    start_counting()
    with tempfile.TemporaryDirectory() as place:
        result = train(model, plan, data, collate, settings, output_dir=place)
    history = result.history
    return [row["loss"] for row in history], [row["seconds"] for row in history]


RUNS = {"plain": run_plain, "ours": run_ours}


def child(variant: str, folder: Path, rows: int, steps: int) -> dict[str, Any]:
    """Run a variant in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.training", "--variant", variant]
    command += ["--folder", str(folder), "--batch", str(rows), "--steps", str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def compare(rows: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return figures and ratios; the first step of every run is a warm-up."""
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "model")
        for turn in range(rounds):
            for variant in VARIANTS if turn % 2 else reversed(VARIANTS):
                runs[variant].append(child(variant, folder, rows, steps))
                print(variant, runs[variant][-1], file=sys.stderr)
    first = [runs[variant][0]["losses"][0] for variant in VARIANTS]
    if abs(first[0] - first[1]) > 1e-4 * first[0]:
        raise SystemExit(f"the two steps start from different losses: {first}")
    seconds = {
        variant: [statistics.median(run["seconds"][1:]) for run in found]
        for variant, found in runs.items()
    }
    memory = {variant: max(run["peak"] for run in found) for variant, found in runs.items()}
    pairs = zip(seconds["ours"], seconds["plain"], strict=True)
    return {
        "seconds": {variant: statistics.median(found) for variant, found in seconds.items()},
        "bytes": memory,
        "time": statistics.median(ours / plain for ours, plain in pairs),
        "memory": memory["ours"] / memory["plain"],
    }


def main() -> int:
    """Run the benchmark; exit 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        losses, seconds = RUNS[options.variant](options.folder, options.batch, options.steps)
        print(json.dumps({"losses": losses, "seconds": seconds, "peak": peak_memory()}))
        return 0
    found = compare(options.batch, options.steps, options.rounds)
    print(json.dumps(found, indent=2))
    missed = [key for key, limit in LIMITS.items() if found[key] > limit]
    for key in missed:
        print(f"missed: {key} {found[key]:.3f}, limit {LIMITS[key]}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
