"""One run of a vision tower: how it was called, and running sums of its hidden states."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dcsurgery.anatomy import Anatomy
from dcsurgery.features import FeatureLayout


@dataclass
class TowerPass:
    """What one run of a tower leaves for the projector.

    `tower` is the path suffix of the module that ran, `args` and `kwargs` how it was called;
    `projector_call` how the projector was, where the anatomy names its module. `sums` holds one
    fp32 sum per feature block, never all hidden states; `weights` (mix) the weight of every state
    in every block. `site` is the site that asks for rows, `site_rows` counts those it has just read
    (0: unknown), which tells a pass whose tokens were merged on the way from one whose tokens were
    not. `rows` are what sites read, one tensor per call, by the number of rows the anatomy gives
    them for one image; `calls` counts each site's calls, `unread` are the sites with calls to come.
    `with_grad`: gradients were recorded when the pass began.
    """

    model: nn.Module
    tower: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    anatomy: Anatomy
    projector_call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    weights: tuple[Tensor, ...] = ()
    sums: list[Tensor | None] = field(default_factory=list)
    unread: set[int] = field(default_factory=set)
    site: int = 0
    site_rows: int = 0
    with_grad: bool = field(default_factory=torch.is_grad_enabled)
    rows: dict[int, list[Tensor]] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)

    def argument(self, call: str, name: str, position: int) -> Any:
        """Return an argument of the "tower" or "projector" call by name, or by position.

        None when it was not given.
        """
        args, kwargs = (self.args, self.kwargs) if call == "tower" else self.projector_call
        if name in kwargs:
            return kwargs[name]
        return args[position] if position < len(args) else None

    @property
    def ready(self) -> bool:
        """True once every block has its sum."""
        return bool(self.rows) or all(item is not None for item in self.sums)

    def add(self, layout: FeatureLayout, state: int, hidden: Tensor) -> None:
        """Add hidden state `state` [..., C] to every block that reads it."""
        with _outside_checkpoints(self.with_grad):
            for index, block in enumerate(layout.blocks):
                if state in block.layers:
                    weights = self.weights[index] if self.weights else None
                    term = hidden
                    if weights is not None:
                        term = hidden * weights[block.layers.index(state)].to(hidden.device)
                    self.sums[index] = _accumulate(self.sums[index], term)

    def means(self, layout: FeatureLayout) -> list[Tensor]:
        """Return every block's mean (mix: weighted sum) in fp32, from shallow to deep."""
        sums = [total for total in self.sums if total is not None]
        if self.weights:
            return sums
        return [total / len(b.layers) for total, b in zip(sums, layout.blocks, strict=True)]


@contextmanager
def _outside_checkpoints(with_grad: bool) -> Iterator[None]:
    """Record gradients as the pass as a whole does, whatever a block around this does.

    Up to transformers 5.22 the hooks of a block run inside its gradient checkpoint. A reentrant one
    turns gradients off, the other counts the tensors that are kept for them and finds another
    number when the block runs again without a pass.
    """
    if not with_grad:
        yield
        return
    with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def block_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden state a block of a tower is called with: its first argument.

    transformers passes it by position or under one of several names.
    """
    hidden: Tensor = args[0] if args else next(iter(kwargs.values()))
    return hidden


def _accumulate(total: Tensor | None, term: Tensor) -> Tensor:
    # Sums are fp32: a group of large fp16 states would overflow.
    dtype = torch.promote_types(term.dtype, torch.float32)
    if total is None:
        # A copy, so that later terms can be added in place without touching the model's own state.
        return term.to(dtype, copy=True)
    total = total.to(term.device)
    if torch.is_grad_enabled() and (term.requires_grad or total.requires_grad):
        return total + term
    return total.add_(term)


class PassHolder(threading.local):
    """The pass under way and the one whose sums the projector may read.

    Per thread, and never copied: a copy of the model starts with no pass under way.
    """

    running: TowerPass | None = None
    finished: TowerPass | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PassHolder:
        return PassHolder()

    def __reduce__(self) -> tuple[type[PassHolder], tuple[()]]:
        return (PassHolder, ())

    @property
    def readable(self) -> TowerPass | None:
        """The pass a site reads: the finished one, or the running one when its sums are whole.

        Some families keep the projector inside the vision tower.
        """
        if self.running is not None and self.running.ready:
            return self.running
        return self.finished
