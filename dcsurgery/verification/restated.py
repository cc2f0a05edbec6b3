"""The connector written once more, as the reference computes it: keep every state, stack, mean.

Nothing here is shared with connectors/attach.py but `arrange` and how a block is called:
verification compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.attach import find_module
from dcsurgery.connectors.module import NORM_EPS, Arrange
from dcsurgery.connectors.passes import TowerPass, block_input
from dcsurgery.features import FeatureLayout


class _Restated:
    def __init__(
        self,
        anatomy: Anatomy,
        layout: FeatureLayout,
        arrange: Arrange | None,
        tensors: Mapping[str, Tensor],
    ) -> None:
        self.anatomy = anatomy
        self.layout = layout
        self.arrange = arrange
        self.tensors = tensors
        self.run: TowerPass | None = None
        self.states: list[Tensor] = []
        self.calls: dict[int, int] = {}

    def start(self, model: nn.Module, tower: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.run = TowerPass(model, tower, args, kwargs, self.anatomy)
            self.states, self.calls = [], {}

        return hook

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.run is not None:
            self.run.projector_call = (args, kwargs)

    def keep_input(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self.states.append(block_input(args, kwargs))

    def keep_output(self, block: nn.Module, args: Any, output: Any) -> None:
        self.states.append(output[0] if isinstance(output, tuple) else output)

    def blocks(self) -> list[Tensor]:
        """One feature per block [B, N, C]."""
        features = []
        for index, block in enumerate(self.layout.blocks):
            stack = torch.stack([self.states[layer] for layer in block.layers])
            if self.layout.mixed:
                shares = self.tensors["mix"][self.layout.spans[index]].softmax(0)
                features.append(torch.tensordot(shares.to(stack), stack, dims=1))
            else:
                features.append(stack.mean(dim=0))
        if self.layout.normed:
            weights, biases = self.tensors["norm_weight"], self.tensors["norm_bias"]
            features = [
                functional.layer_norm(f, f.shape[-1:], weights[i].to(f), biases[i].to(f), NORM_EPS)
                for i, f in enumerate(features)
            ]
        return features

    def rows(self, site: int, count: int) -> list[Tensor]:
        """What a site that has read `count` rows reads in this call, one tensor per block."""
        assert self.run is not None
        self.run.site, self.run.site_rows = site, count
        call = self.calls.get(site, 0)
        self.calls[site] = call + 1
        rows = []
        for feature in self.blocks():
            if self.arrange is None:
                rows.append(feature[:, self.anatomy.dropped_tokens :])
            else:
                rows.append(self.arrange(self.run, feature)[call])
        return rows

    def widen(self, site: int, matrix: Tensor) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            rows = self.rows(site, output.numel() // len(matrix))
            added = torch.cat(rows, dim=-1) @ matrix.T
            return output + added.reshape(output.shape)

        return hook

    def append(self, module: nn.Module, args: Any) -> tuple[Tensor]:
        stride = self.layout.stride
        tokens = [args[0]]
        for rows in self.rows(0, args[0].numel() // args[0].shape[-1]):
            whole = rows[:, : rows.shape[1] // stride * stride]
            batch, count, width = whole.shape
            tokens.append(whole.reshape(batch, count // stride, stride, width).mean(dim=2))
        return (torch.cat(tokens, dim=1),)

    def pool(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Mean of pool x pool windows, which bilinear halving is (the remainder is dropped)."""
        grid = self.states[0].shape[1] - self.anatomy.dropped_tokens
        side = math.isqrt(grid)
        maps = output[:, :grid].transpose(1, 2).reshape(len(output), -1, side, side)
        pooled = functional.avg_pool2d(maps, self.layout.pool).flatten(2).transpose(1, 2)
        return torch.cat([pooled, output[:, grid:]], dim=1)


@contextmanager
def restated_connector(
    model: nn.Module,
    anatomy: Anatomy,
    layout: FeatureLayout,
    arrange: Arrange | None,
    tensors: Mapping[str, Tensor],
) -> Iterator[None]:
    """Make a plain model compute the connector from stacked hidden states while the block lasts.

    `tensors` are the connector's own, as `attach` takes them, in the model's dtype.
    """
    own = _Restated(anatomy, layout, arrange, tensors)
    handles: list[Any] = []
    for path, blocks in anatomy.tower.paths:
        tower, listed = find_module(model, path), list(find_module(model, blocks).children())
        start = own.start(model, path)
        handles.append(tower.register_forward_pre_hook(start, with_kwargs=True))
        for block in listed:
            handles.append(block.register_forward_pre_hook(own.keep_input, with_kwargs=True))
        handles.append(listed[-1].register_forward_hook(own.keep_output))
    if anatomy.projector.module:
        projector = find_module(model, anatomy.projector.module)
        handles.append(projector.register_forward_pre_hook(own.enter, with_kwargs=True))
    sites = [find_module(model, site.module) for site in anatomy.projector.sites]
    if layout.axis == "token":
        handles.append(sites[0].register_forward_pre_hook(own.append))
    else:
        sizes = [site.out_features for site in anatomy.projector.sites]
        matrices = torch.split(tensors["weight"], sizes)
        for index, (site, matrix) in enumerate(zip(sites, matrices, strict=True)):
            handles.append(site.register_forward_hook(own.widen(index, matrix)))
    if layout.pool > 1:
        pooled = find_module(model, anatomy.projector.sites[0].module.partition(".")[0])
        handles.append(pooled.register_forward_hook(own.pool))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
