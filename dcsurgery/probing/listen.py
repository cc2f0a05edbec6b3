"""What one row tells: states as the projector's first matrices would read them, and the error.

At D = 0 the loss gradient for the block of every state is a sum over tokens of error times state,
with the error at the output of the projector's first matrix: one backward pass serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.attach import find_module, hook_states
from dcsurgery.connectors.module import Arrange, DenseConnector
from dcsurgery.connectors.passes import block_input
from dcsurgery.errors import RequestError
from dcsurgery.features import FeatureBlock, FeatureLayout
from dcsurgery.training.loss import IGNORED, SupervisedHead, next_tokens, supervised_loss
from dcsurgery.training.precision import DTYPES, autocast

Blocks = tuple[FeatureBlock, ...]
# Small gradients underflow in fp16; a power of two costs no digit.
FP16_SCALE = 2.0**12


@dataclass(frozen=True)
class SiteReading:
    """What one site met in a row, all its calls together, fp32.

    `read` [T, X] is what its matrix multiplies today, `states` [T, K, C] the blocks asked for,
    arranged as it reads them, `error` [T, out] the gradient of the row's summed loss at its output.
    """

    read: Tensor
    states: Tensor
    error: Tensor


@dataclass(frozen=True)
class RowReading:
    """One row: a reading per site, the summed loss of its answer tokens (nats), their number."""

    sites: tuple[SiteReading, ...]
    loss: float
    tokens: int


@dataclass
class _Call:
    read: Tensor
    states: Tensor
    error: Tensor


class _Hear:
    def __init__(self, listener: Listener, site: int) -> None:
        self.listener = listener
        self.site = site

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return self.listener.hear(self.site, block_input(args, kwargs), output)


class Listener(DenseConnector):
    """A connector without a matrix: it hears what one would read, and changes no output.

    `today` are the blocks that stand for what the projector reads where its own input does not show
    it: the feature layers of a projector that pools or merges inside, and the blocks of a connector
    that the model has already.
    """

    def __init__(
        self, anatomy: Anatomy, blocks: Blocks, arrange: Arrange | None, installed: Blocks = ()
    ) -> None:
        feature = tuple(FeatureBlock((layer,)) for layer in anatomy.feature_layers)
        super().__init__(anatomy, FeatureLayout("probe", (*blocks, *feature, *installed)), arrange)
        self.asked, self.installed = len(blocks), len(installed)
        self.calls: list[list[_Call]] = []

    def hear(self, site: int, read: Tensor, output: Tensor) -> Tensor:
        """Keep what a site has read, and return its output plus a zero that takes its gradient.

        Raises RequestError where the tower's tokens are not those the projector reads.
        """
        item = self.anatomy.projector.sites[site]
        tokens = output.numel() // item.out_features
        found = self.take(site, tokens).detach().float()
        states = found.reshape(-1, len(self.layout.blocks), self.anatomy.feature_width)
        if len(states) != tokens:
            raise RequestError(
                f"the projector read {tokens} tokens but the vision tower gave {len(states)}",
                hint="`dcsurgery verify` says whether model and processor fit together",
            )
        zero = torch.zeros_like(output, requires_grad=True)
        call = _Call(self._read(read, states, item.in_features), states[:, : self.asked], zero)
        self.calls[site].append(call)
        return output + zero

    def _read(self, read: Tensor, states: Tensor, channels: int) -> Tensor:
        """Return what the site's matrix reads today, [T, X]."""
        if read.numel() == len(states) * channels:
            own = read.detach().float().reshape(len(states), channels).to(states.device)
        else:  # it is merged or pooled inside of the site
            last = states.shape[1] - self.installed
            own = states[:, self.asked : last].flatten(1)
        return torch.cat([own, states[:, states.shape[1] - self.installed :].flatten(1)], dim=1)

    def clear(self) -> None:
        """Forget the last row."""
        self.calls = [[] for _ in self.anatomy.projector.sites]


@contextmanager
def listening(model: Any, listener: Listener, precision: str = "fp32") -> Iterator[Reader]:
    """Put a listener on a model whose parameters are frozen for the while; yield what reads rows.

    Gradients, modes and hooks are as before when the block ends. Raises AnatomyError.
    """
    sites = [find_module(model, site.module) for site in listener.anatomy.projector.sites]
    wanted = [(value, value.requires_grad) for value in model.parameters()]
    training = model.training
    head = SupervisedHead(model)
    try:
        hook_states(model, listener)
        for index, site in enumerate(sites):
            hook: Any = _Hear(listener, index)
            listener._handles.append(site.register_forward_hook(hook, with_kwargs=True))
        for value, _ in wanted:
            value.requires_grad_(False)
        model.eval()
        yield Reader(model, listener, head, precision)
    finally:
        head.remove()
        for handle in listener._handles:
            handle.remove()
        for value, before in wanted:
            value.requires_grad_(before)
        model.train(training)


@dataclass(frozen=True)
class Reader:
    """Reads one row at a time through a model with a listener."""

    model: Any
    listener: Listener
    head: SupervisedHead
    precision: str

    def read(self, batch: Mapping[str, Tensor]) -> RowReading:
        """Run one row forward and backward. Raises RequestError where it never met the projector.

        `batch` is what finetune's collator makes of the row.
        """
        device = next(self.model.parameters()).device
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        tokens = int((next_tokens(inputs["labels"]) != IGNORED).sum())
        self.listener.clear()
        with torch.enable_grad(), autocast(self.precision):
            loss = supervised_loss(self.model, self.head, inputs)
        calls = [call for site in self.listener.calls for call in site]
        if not all(self.listener.calls):
            raise RequestError(
                "a row's picture never reached the projector",
                hint="`dcsurgery verify` says whether model and processor fit together",
            )
        scale = FP16_SCALE if DTYPES[self.precision] is torch.float16 else 1.0
        slopes = torch.autograd.grad(
            loss * scale, [call.error for call in calls], allow_unused=True
        )
        left = iter(slopes)
        sites = []
        for site, heard in zip(
            self.listener.anatomy.projector.sites, self.listener.calls, strict=True
        ):
            errors = []
            for call in heard:
                slope = next(left)
                slope = torch.zeros_like(call.error) if slope is None else slope
                errors.append(slope.float().reshape(-1, site.out_features) / scale)
            read, states = ([getattr(call, name) for call in heard] for name in ("read", "states"))
            sites.append(SiteReading(torch.cat(read), torch.cat(states), torch.cat(errors)))
        self.listener.clear()
        return RowReading(tuple(sites), float(loss.detach()), tokens)
