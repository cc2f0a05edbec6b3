"""What a training would need: measured on one micro-batch, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dcsurgery.training.feeding import ROWS, micro_batches
from dcsurgery.training.job import Job
from dcsurgery.training.loss import SupervisedHead, supervised_loss, zero_of
from dcsurgery.training.precision import arithmetic, autocast

# AdamW keeps two fp32 numbers for each one it trains.
OPTIMIZER_BYTES = 8


@dataclass(frozen=True)
class Estimate:
    """Bytes in memory on one device, and seconds of one update with the whole global batch.

    `activations` is what one micro-batch keeps for its backward pass: measured, on a GPU as the
    peak above everything else.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    seconds_per_step: float

    @property
    def memory(self) -> int:
        """All of it together."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def estimate(model: Any, job: Job) -> Estimate:
    """Return what a prepared job needs, from forward and backward passes of its first micro-batch.

    Gradients are dropped again; nothing else of the model changes.
    """
    names = set(job.trained.names)
    trained = [value for name, value in model.named_parameters() if name in names]
    batch = _first_batch(model, job)
    _, count = micro_batches(job.settings)
    head = SupervisedHead(model)
    model.train()
    try:
        _pass(model, head, batch, job)
        started = time.perf_counter()
        activations = _pass(model, head, batch, job)
        seconds = (time.perf_counter() - started) * count
    finally:
        head.remove()
        model.eval()
        model.zero_grad()
    return Estimate(
        parameters=sum(value.numel() * value.element_size() for value in model.parameters()),
        gradients=sum(value.numel() * value.element_size() for value in trained),
        optimizer=OPTIMIZER_BYTES * job.trained.count,
        activations=activations,
        seconds_per_step=seconds,
    )


def _first_batch(model: nn.Module, job: Job) -> dict[str, Any]:
    size, _ = micro_batches(job.settings)
    batch = job.feed.collate(job.feed.first(job.settings, size))
    del batch[ROWS]
    device = next(model.parameters()).device
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _pass(model: Any, head: SupervisedHead, batch: Mapping[str, Any], job: Job) -> int:
    """Run forward and backward; return the bytes that were kept in between."""
    kept: dict[int, int] = {}
    known = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if gpu else 0
    with autocast(arithmetic(job.settings, model)), saved_tensors_hooks(keep, lambda item: item):
        loss = supervised_loss(model, head, batch)
    trained = [value for value in model.parameters() if value.requires_grad]
    torch.autograd.backward(loss + zero_of(trained))
    model.zero_grad()
    if gpu:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return sum(kept.values())
