"""What a connector costs in the forward pass: python -m tests.benchmarks.forward

At CLIP-L/336 size (24 blocks, width 1024, 577 tokens, projector 1024 -> 4096, random weights) the
image path is run three ways: the base; the base with DCI attached (running sums); and DCI as the
reference computes it (keep all hidden states, stack, mean, a widened first matrix). Times alternate
within one process; peak memory (resident set) is each variant's own process.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

VARIANTS = ("base", "attached", "stacked")
LIMITS = {"time": 1.05, "memory": 1.15, "extra": 0.5}
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14,
    "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
    "projection_dim": 768,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 64, "num_attention_heads": 32,
    "num_key_value_heads": 32, "num_hidden_layers": 0, "vocab_size": 64,
}  # fmt: skip


def build(dtype: torch.dtype) -> Any:
    """A LLaVA with the true image path and no language layers."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig.from_dict(
        {"vision_config": VISION, "text_config": TEXT, "image_token_index": 5}
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)


def attach_dci(model: Any, matrix: torch.Tensor) -> None:
    """Install DCI with G = 2 and a random matrix."""
    from dcsurgery.anatomy import Anatomy, Projector, Site, VisionTower
    from dcsurgery.connectors import make_layout
    from dcsurgery.connectors.attach import attach
    from dcsurgery.connectors.request import Connector

    site = Site("multi_modal_projector.linear_1", "", 1024, 4096)
    anatomy = Anatomy(
        architecture="llava",
        tower=VisionTower(
            "clip_vision_model", "vision_tower", "vision_tower.encoder.layers", 1024, 24, 1, 336, 14
        ),
        projector=Projector((site,), ()),
        feature_layers=(23,),
        feature_width=1024,
        dropped_tokens=1,
        image_tokens=576,
        variable_resolution=False,
        language_model="llama",
        dtype="F32",
    )
    attach(model, anatomy, make_layout(anatomy, Connector("dci")), tensors={"weight": matrix})


def stacked(model: Any, wide: torch.nn.Linear, pixels: torch.Tensor) -> torch.Tensor:
    """DCI as the reference has it: every state kept, groups stacked, a first matrix of 3 widths."""
    found = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    states = [state[:, 1:] for state in found]
    groups = [torch.stack(states[i : i + 12], dim=0).sum(dim=0) / 12 for i in (0, 12)]
    projector = model.model.multi_modal_projector
    joined = torch.cat([states[23], *groups], dim=-1)
    return projector.linear_2(projector.act(wide(joined)))


def prepare(variant: str, dtype: torch.dtype, batch: int) -> tuple[Any, torch.Tensor]:
    """Return a callable that runs a variant once, and its pixels [B, 3, 336, 336]."""
    model = build(dtype)
    pixels = torch.randn(batch, 3, 336, 336, generator=torch.Generator().manual_seed(1)).to(dtype)
    matrix = 0.02 * torch.randn(4096, 2048, generator=torch.Generator().manual_seed(2))
    matrix = matrix.to(dtype)
    if variant == "attached":
        attach_dci(model, matrix)
    if variant == "stacked":
        old = model.model.multi_modal_projector.linear_1
        wide = torch.nn.Linear(3072, 4096, dtype=dtype)
        with torch.no_grad():
            wide.weight.copy_(torch.cat([old.weight, matrix], dim=1))
            wide.bias.copy_(old.bias)
        del model.model.multi_modal_projector.linear_1, old
        return lambda: stacked(model, wide, pixels), pixels
    return lambda: model.get_image_features(pixel_values=pixels).pooler_output, pixels


def start_counting() -> None:
    """Forget the peak so far: building a model takes more than running it. Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak resident set since `start_counting`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


@torch.no_grad()
def measure_memory(variant: str, dtype: torch.dtype, batch: int) -> int:
    """Run one variant in this process; return its peak memory, weights included, in bytes."""
    run, _ = prepare(variant, dtype, batch)
    start_counting()
    run()
    return peak_memory()


@torch.no_grad()
def measure_times(dtype: torch.dtype, batch: int, rounds: int) -> dict[str, list[float]]:
    """Run the variants in turns; return seconds per round."""
    runs = {variant: prepare(variant, dtype, batch)[0] for variant in VARIANTS}
    outputs = {}
    for variant, run in runs.items():
        found = run()
        outputs[variant] = torch.cat([part.reshape(-1, 4096) for part in found]).float()
    agreement = (outputs["attached"] - outputs["stacked"]).abs().max().item()
    scale = outputs["stacked"].abs().max().item()
    if agreement > (1e-4 if dtype == torch.float32 else 3e-2) * max(1.0, scale):
        raise SystemExit(f"attached and stacked disagree by {agreement} on a scale of {scale}")
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(rounds):
        order = VARIANTS if turn % 2 else tuple(reversed(VARIANTS))
        for variant in order:
            started = time.perf_counter()
            runs[variant]()
            times[variant].append(time.perf_counter() - started)
            print(f"{dtype} {variant}: {times[variant][-1]:.2f} s", file=sys.stderr)
    return times


def child_memory(variant: str, dtype: str, batch: int) -> int:
    """Peak memory of a variant in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.forward", "--memory-of", variant]
    command += ["--dtype", dtype, "--batch", str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def compare(dtype: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure all variants at one dtype; return figures and ratios to the base."""
    times = measure_times(getattr(torch, dtype), batch, rounds)
    memory = {variant: child_memory(variant, dtype, batch) for variant in VARIANTS}
    print(f"{dtype} peak memory: {memory}", file=sys.stderr)
    paired = [a / b for a, b in zip(times["attached"], times["base"], strict=True)]
    extra = {v: memory[v] - memory["base"] for v in ("attached", "stacked")}
    return {
        "dtype": dtype,
        "batch": batch,
        "seconds": {variant: statistics.median(found) for variant, found in times.items()},
        "bytes": memory,
        "time": statistics.median(paired),
        "memory": memory["attached"] / memory["base"],
        "extra": extra["attached"] / extra["stacked"],
    }


def render(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with the limits beside the figures."""
    lines = [
        "| dtype | batch | base | attached | stacked | time, attached / base (limit 1.05) "
        "| peak memory, attached / base (1.15) | extra memory, attached / stacked (0.5) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row['seconds'][v]:.2f} s, {row['bytes'][v] / 2**20:.0f} MiB" for v in VARIANTS]
        ratios = [f"{row[key]:.3f}" for key in LIMITS]
        lines.append(f"| {row['dtype']} | {row['batch']} | {' | '.join([*cells, *ratios])} |")
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark; exit 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    dtypes = options.dtype or ["bfloat16", "float32"]
    if options.memory_of:
        print(measure_memory(options.memory_of, getattr(torch, dtypes[0]), options.batch))
        return 0
    rows = [compare(dtype, options.batch, options.rounds) for dtype in dtypes]
    print(json.dumps(rows, indent=2) if options.json else render(rows))
    missed = [(r["dtype"], key) for r in rows for key, limit in LIMITS.items() if r[key] > limit]
    for dtype, key in missed:
        print(f"missed: {key} at {dtype}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
