"""The connector's own tensors and the arithmetic between a tower pass and the projector's sites.

Along channels y = site(x) + D g, with g the feature blocks joined along channels and D the new
matrix (arXiv 2405.13800 eq. 4 written as a sum: [W | D][x; g] = W x + D g). Along tokens the pooled
blocks are appended to what the site reads (eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors.passes import PassHolder, TowerPass
from dcsurgery.errors import RequestError
from dcsurgery.features import FeatureLayout

# One hidden state as the asking site reads it: a tensor [..., width] for each call of that site.
Arrange = Callable[[TowerPass, Tensor], list[Tensor]]
NORM_EPS = 1e-5


class DenseConnector(nn.Module):
    """The new tensors and the arithmetic between a tower pass and the projector's sites.

    `weight` is D, [rows of all sites, G * width], in the first site's dtype and on its device,
    blocks from shallow to deep (absent along tokens); `mix` one logit per state, blocks one after
    another; `norm_weight` and `norm_bias` [G, C] one LayerNorm per block. All hooks hold the
    connector itself, so copy.deepcopy of the model rebinds them to the copy.
    """

    weight: nn.Parameter | None
    mix: nn.Parameter | None
    norm_weight: nn.Parameter | None
    norm_bias: nn.Parameter | None

    def __init__(
        self, anatomy: Anatomy, layout: FeatureLayout, arrange: Arrange | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.anatomy = anatomy
        self.arrange = arrange
        for name in ("weight", "mix", "norm_weight", "norm_bias"):
            self.register_parameter(name, None)
        self._passes = PassHolder()
        self._handles: list[RemovableHandle] = []
        # In a list: a plain attribute would register the model as a submodule of its own part.
        self._owner: list[nn.Module] = []

    def forward(self, step: str, *args: Any) -> Any:
        """Take a step that reads parameters: engines that split these put them together around it.

        FSDP and DeepSpeed's ZeRO-3 do so when a module is called, not when its methods are.
        """
        return getattr(self, step)(*args)

    def open_pass(self, tower: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a pass, forgetting whatever an earlier or broken one left behind."""
        run = TowerPass(self._owner[0], tower, args, kwargs, self.anatomy)
        run.sums = [None] * len(self.layout.blocks)
        run.unread = set(range(len(self.anatomy.projector.sites)))
        if self.mix is not None:
            logits = self.mix.float()
            run.weights = tuple(logits[span].softmax(dim=0) for span in self.layout.spans)
        self._passes.running, self._passes.finished = run, None

    def close_pass(self) -> None:
        """End the pass: hand complete sums to the sites that have not read them yet."""
        run, self._passes.running = self._passes.running, None
        if run is not None and run.ready and run.unread:
            self._passes.finished = run

    def enter_projector(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep how the projector was called, for `arrange`."""
        if self._passes.readable is not None:
            self._passes.readable.projector_call = (args, kwargs)

    def collect(self, state: int, hidden: Tensor, block: nn.Module) -> None:
        """Add a hidden state to the pass under way: what `block` reads or gives.

        Raises RequestError where the block's own gradients would be lost silently.
        """
        run = self._passes.running
        # Outside a pass this is a block re-run by gradient checkpointing: nothing to add.
        if run is None:
            return
        if run.with_grad and not torch.is_grad_enabled() and _trained(block):
            raise RequestError(
                "reentrant gradient checkpointing hides the vision tower's graph from the dense "
                "connector, and the tower is being trained",
                hint='enable it with {"use_reentrant": False}, or freeze the vision tower',
            )
        run.add(self.layout, state, hidden)

    def take(self, site: int, count: int) -> Tensor:
        """Return g as one site reads it, [..., G * width]; each site reads all rows once.

        `count` is the number of rows the site itself has just read.
        """
        run = self._passes.readable
        if run is None or site not in run.unread:
            raise RequestError(
                "the projector ran without the vision tower: the dense connector has no states",
                hint="pass pixel_values to the model, not precomputed tower features",
            )
        rows = self._rows_of(run, site, count)
        call = run.calls.get(site, 0)
        run.calls[site] = call + 1
        if run.calls[site] == len(rows):
            run.unread.discard(site)
        if not run.unread:
            self._passes.finished = None
            run.rows = {}
        return rows[call]

    def _rows_of(self, run: TowerPass, site: int, count: int) -> list[Tensor]:
        """Return what a site reads in each of its calls, blocks joined.

        Sites that read the same number of rows for one image read the same rows.
        """
        sizes = [item.rows for item in self.anatomy.projector.sites]
        if sizes[site] not in run.rows:
            run.site, run.site_rows = site, count
            run.rows[sizes[site]] = self.join(run, run.means(self.layout))
            if run.rows.keys() == set(sizes):
                run.sums = [None] * len(run.sums)
        return run.rows[sizes[site]]

    def join(self, run: TowerPass, means: list[Tensor]) -> list[Tensor]:
        """Return what the asking site reads in each of its calls, blocks joined."""
        if self.norm_weight is not None and self.norm_bias is not None:
            weights, biases = self.norm_weight.float(), self.norm_bias.float()
            means = [
                _layer_norm(mean, weight.to(mean.device), bias.to(mean.device))
                for mean, weight, bias in zip(means, weights, biases, strict=True)
            ]
        arranged = [self._arranged(run, mean) for mean in means]
        home = arranged[0][0].device
        if self.layout.axis == "token":
            pooled = [_pool_tokens(calls[0], self.layout.stride) for calls in arranged]
            return [torch.cat([item.to(home) for item in pooled], dim=1)]
        return [
            torch.cat([item.to(home) for item in call], dim=-1)
            for call in zip(*arranged, strict=True)
        ]

    def _arranged(self, run: TowerPass, state: Tensor) -> list[Tensor]:
        """Return the rows of one state, call by call."""
        if self.arrange is not None:
            return self.arrange(run, state)
        dropped = self.anatomy.dropped_tokens
        return [state[:, dropped:] if dropped else state]

    def extend(self, site: int, output: Tensor) -> Tensor:
        """Return a site's output plus its rows of D times g."""
        weight = self.matrix(site)
        rows = output.numel() // len(weight)
        joined = self.take(site, rows).to(weight.device, weight.dtype)
        added = functional.linear(joined, weight)
        if added.numel() != output.numel():
            raise RequestError(
                f"the projector read {output.numel() // output.shape[-1]} tokens but the vision "
                f"tower gave {added.numel() // added.shape[-1]}",
                hint="the projector must run on the tower's latest output",
            )
        return output + added.reshape(output.shape).to(output)

    def matrix(self, site: int) -> Tensor:
        """Return the rows of D that belong to a site, [out, G * width]."""
        sizes = [item.out_features for item in self.anatomy.projector.sites]
        assert self.weight is not None
        return torch.split(self.weight, sizes)[site] if len(sizes) > 1 else self.weight

    def append(self, features: Tensor) -> Tensor:
        """Return what the projector reads, [B, N, C], with the pooled tokens appended."""
        rows = features.numel() // features.shape[-1]
        return torch.cat([features, self.take(0, rows).to(features)], dim=1)

    def pool(self, projected: Tensor) -> Tensor:
        """Return projected tokens [B, N, H] with the sides of their square grid divided by `pool`.

        Bilinear interpolation as in arXiv 2405.13800 section 3.3; an odd side loses its last row
        and column (27 -> 13). Appended tokens stay. Raises RequestError for a grid that is not
        square.
        """
        count = projected.shape[1]
        side = next(
            (
                side
                for side in range(math.isqrt(count), 0, -1)
                if side**2 + self.layout.appended_tokens(side**2) == count
            ),
            0,
        )
        if side < self.layout.pool:
            raise RequestError(
                f"{count} image tokens are not a square grid that can be pooled",
                hint="use images of the size the vision tower was trained for",
            )
        grid, appended = projected[:, : side**2], projected[:, side**2 :]
        grid = grid.transpose(1, 2).reshape(len(grid), -1, side, side)
        scale = 1 / self.layout.pool
        pooled = functional.interpolate(grid, scale_factor=scale, mode="bilinear")
        return torch.cat([pooled.flatten(2).transpose(1, 2), appended], dim=1)

    def refuse_save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Stand-in for save_pretrained: stock code would load the result as the base."""
        raise RequestError(
            "save_pretrained on an upgraded model would write a folder that plain transformers "
            "loads as the unmodified base",
            hint="save dense_connector.weight as the delta's tensor, or convert with --form stock",
        )


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _layer_norm(state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(state, state.shape[-1:], weight, bias, NORM_EPS)


def _pool_tokens(rows: Tensor, stride: int) -> Tensor:
    """Average every `stride` neighbouring tokens of [B, N, C]; the remainder is dropped."""
    return functional.avg_pool1d(rows.transpose(1, 2), stride).transpose(1, 2)
