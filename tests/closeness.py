"""How close two tensors must be: relative to the largest value, so that any processor passes.

fp32 rounds to 6e-8 of a value. The tiny models add some hundreds of products in each of a few
layers, in an order that the processor's kernels choose; 1.2e-6 of the largest value is the most
that two processors were seen to differ. SAME leaves a factor of eight over that. PAPER is for
tensors that other code computed: the reference's with another torch, or sums in another order
through a backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAME = 1e-5
PAPER = 1e-4


def assert_near(found: Tensor, wanted: Tensor, relative: float = SAME, what: str = "") -> None:
    """Fail unless shapes agree and no value is further away than relative x the largest wanted."""
    assert found.shape == wanted.shape, f"{what} {tuple(found.shape)} != {tuple(wanted.shape)}"
    if not wanted.numel():
        return
    found, wanted = found.detach().double(), wanted.detach().double()
    assert torch.isfinite(found).all() and torch.isfinite(wanted).all(), what
    scale = wanted.abs().max().item()
    worst = (found - wanted).abs().max().item()
    limit = f"limit {relative:g} x {scale:.3g}"
    assert worst <= relative * scale, f"{what} differs by {worst:.3g}, {limit}"
