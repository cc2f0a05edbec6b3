"""What weights, gradients and AdamW take on each device, however processes share them."""

from __future__ import annotations

from typing import Any

import torch

from dcsurgery.errors import RequestError
from dcsurgery.training.estimate import OPTIMIZER_BYTES
from dcsurgery.training.feeding import processes
from dcsurgery.training.job import Job
from dcsurgery.training.sharding import sharding

GB = 1e9
# Bytes of a number that is trained: its gradient, a running average.
GRADIENT, AVERAGE = 4, 4


def held(
    weights: int, trained: int, split: str = "none", count: int = 1, *, average: bool = False
) -> float:
    """Return the bytes that one of `count` processes holds all the time, activations aside.

    `weights` are the bytes of all parameters, `trained` counts the numbers that are trained, in
    fp32. ZeRO-1 splits AdamW's numbers, ZeRO-2 the gradients too, ZeRO-3 and FSDP2 everything; a
    running average is whole everywhere.
    """
    gradients, optimizer = GRADIENT * trained, OPTIMIZER_BYTES * trained
    whole = AVERAGE * trained * average
    parts = {
        "none": (weights + gradients + optimizer, 0),
        "zero1": (weights + gradients, optimizer),
        "zero2": (weights, gradients + optimizer),
    }
    kept, shared = parts.get(split, (0, weights + gradients + optimizer))
    return whole + kept + shared / count


def check_memory(model: Any, job: Job) -> list[str]:
    """Return what to tell of memory before a training in several processes, or on a GPU.

    Raises RequestError where the device is smaller than what is held all the time.
    """
    split, count = sharding(), processes()
    gpu = torch.cuda.is_available()
    if count == 1 and not gpu:
        return []
    plain = sum(value.numel() * value.element_size() for value in model.parameters())
    fp32 = 4 * sum(value.numel() for value in model.parameters())

    def needs(way: str) -> float:
        weights = fp32 if way.startswith("zero") else plain
        average = bool(job.settings.average)
        return held(weights, job.trained.count, way, count, average=average)

    how = "" if split == "none" else f" ({split})"
    size = f"{needs(split) / GB:.3g} GB on each of {count} devices{how}"
    if gpu:
        room = torch.cuda.mem_get_info()[1]
        fits = [way for way in ("none", "zero2", "zero3", "fsdp2") if needs(way) < room]
        if needs(split) > room:
            raise RequestError(
                f"weights, gradients and AdamW take {size}, which has {room / GB:.0f} GB",
                hint=f"what fits: {', '.join(fits)}"
                if fits and count > 1
                else "use --train lora, or more GPUs with ZeRO-3",
            )
    told = [f"memory: weights, gradients and AdamW take {size}; activations come on top"]
    if split != "none" and gpu:
        told.append(f"{split} was tested on CPUs, not on GPUs: compare the first losses with DDP's")
    return told
