"""The loss over supervised positions alone: the head never sees the others.

A 7B model's logits for 2048 tokens take 262 MB in fp32, and their gradient as much; of a
conversation a third or less is an answer. A hook in front of the head drops the rest, and the
gradient of those that are left takes their place in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcsurgery.errors import TrainingError

IGNORED = -100
# Logits that are looked at in fp32 at a time: 32 MB.
AT_ONCE = 1 << 23


class SupervisedHead:
    """A hook in front of a model's head that lets only marked positions through."""

    def __init__(self, model: Any) -> None:
        head = model.get_output_embeddings()
        self._handle = None if head is None else head.register_forward_pre_hook(self._select)
        self._mask: Tensor | None = None
        # The text config decides about the cache, and the Trainer changes the outer one alone.
        self.options = {"use_cache": False} if _accepts(model, "use_cache") else {}

    def _select(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._mask is None or not args or args[0].shape[:-1] != self._mask.shape:
            return None
        hidden: Tensor = args[0]
        return (hidden[self._mask.to(hidden.device)][None], *args[1:])

    @contextmanager
    def reading(self, mask: Tensor) -> Iterator[None]:
        """Let only the positions of `mask` [B, T] reach the head while the block runs."""
        self._mask = mask
        try:
            yield
        finally:
            self._mask = None

    def remove(self) -> None:
        """Take the hook off the model."""
        if self._handle is not None:
            self._handle.remove()


def next_tokens(labels: Tensor) -> Tensor:
    """Return what every position of labels [B, T] must predict: the label after it."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def supervised_loss(model: Any, head: SupervisedHead, inputs: Mapping[str, Any]) -> Tensor:
    """Return the summed cross-entropy of the supervised positions of `inputs["labels"]` [B, T].

    Where a model reads its head otherwise, the logits of all positions are made and the supervised
    ones taken from them: the same value, more memory. Raises TrainingError when logits and labels
    do not fit.
    """
    given = {name: value for name, value in inputs.items() if name != "labels"}
    targets = next_tokens(inputs["labels"])
    mask = targets != IGNORED
    with head.reading(mask):
        logits = model(**given, **head.options).logits
    wanted = targets[mask].to(logits.device)
    if logits.shape[:-1] == mask.shape and logits.shape[:-1] != (1, len(wanted)):
        logits = logits[mask.to(logits.device)]
    logits = logits.reshape(-1, logits.shape[-1])
    if len(logits) != len(wanted):
        raise TrainingError(
            f"the model gave logits for {len(logits)} positions, {len(wanted)} are supervised",
            hint="labels must have one entry for each input id, image tokens included",
        )
    if logits.dtype == torch.float16:
        # Its gradients are too small for fp16 before they are scaled.
        return functional.cross_entropy(logits.float(), wanted, reduction="sum")
    total: Tensor = _CrossEntropy.apply(logits, wanted)  # type: ignore[no-untyped-call]
    return total


class _CrossEntropy(torch.autograd.Function):
    """The sum of cross-entropies [] of logits [N, V], which their gradient overwrites.

    Made by torch's own, logits, their copy in fp32, its log-softmax and the gradient are in memory
    together. Were the logits needed for another gradient, autograd would notice and raise.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        kept = ctx.needs_input_grad[0]
        rows = max(1, AT_ONCE // logits.shape[-1])
        parts = (torch.split(value, rows) for value in (logits, wanted[:, None]))
        for part, right in zip(*parts, strict=True):
            values = part.float()
            sums = values.logsumexp(dim=-1, keepdim=True)
            total += (sums - values.gather(1, right)).sum()
            if kept:
                slope = (values - sums).exp_()
                part.copy_(slope.scatter_add_(1, right, slope.new_full(right.shape, -1.0)))
        if kept:
            ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope.mul_(slopes[0]), None


def _accepts(model: Any, name: str) -> bool:
    """Return whether a model's forward takes a keyword."""
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(
        item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()
    )


def zero_of(parameters: list[nn.Parameter]) -> Tensor:
    """Return a zero that depends on every parameter.

    Rows without an image do not touch connector and projector; added to their loss, it gives these
    gradients of zero, which other processes wait for.
    """
    return torch.stack([parameter.sum() * 0 for parameter in parameters]).sum()
