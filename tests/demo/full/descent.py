"""The loop of all pre-training: AdamW, one cycle of the rate, clipped gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def descend(
    weights: Iterable[nn.Parameter],
    loss_of: Callable[[], Tensor],
    steps: int,
    rate: float,
    decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
) -> None:
    """Lower a loss, drawn anew by `loss_of` in every step; `rate` is the peak of the cycle."""
    weights = list(weights)
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=decay, betas=betas, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
