"""Install a connector on a loaded model: hooks on the tower's blocks and on the projector's site.

The branch is y = site(x) + D g, with g the feature blocks joined along channels and D the new
matrix [out, G * width] (arXiv 2405.13800 eq. 4 written as a sum: [W | D][x; g] = W x + D g).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from dcsurgery.anatomy import Anatomy
from dcsurgery.errors import AnatomyError, RequestError
from dcsurgery.features import FeatureLayout

Arrange = Callable[[Any, Tensor], Tensor]


class _Pass(threading.local):
    """Sums of one tower pass: `sums` while the tower runs, `ready` until the site reads them.

    Per thread, and never copied: a copy of the model starts with no pass under way.
    """

    sums: list[Tensor | None] | None = None
    ready: list[Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pass:
        return _Pass()

    def __reduce__(self) -> tuple[type[_Pass], tuple[()]]:
        return (_Pass, ())


class DenseConnector(nn.Module):
    """The new matrix and the hooks that feed it.

    `weight` is D, [out, G * width], in the site's dtype and on its device, blocks from shallow to
    deep. All hooks are bound methods, so copy.deepcopy of the model rebinds them to the copy.
    """

    def __init__(self, anatomy: Anatomy, layout: FeatureLayout, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.layout = layout
        self.dropped = anatomy.dropped_tokens
        self.arrange: Arrange | None = None
        self._pass = _Pass()
        self._owner: list[nn.Module] = []

    def open_pass(self, tower: nn.Module, args: Any) -> None:
        """Pre-hook of the vision tower: forget whatever an earlier or broken pass left behind."""
        self._pass.sums = [None] * len(self.layout.blocks)
        self._pass.ready = None

    def close_pass(self, tower: nn.Module, args: Any, output: Any) -> None:
        """Hook of the vision tower: hand complete sums to the site."""
        sums, self._pass.sums = self._pass.sums, None
        if sums and all(item is not None for item in sums):
            self._pass.ready = [item for item in sums if item is not None]

    def collect_first(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of block 0: its input is hidden state 0."""
        self._collect(0, args[0] if args else kwargs["hidden_states"])

    def _collect(self, state: int, hidden: Tensor) -> None:
        sums = self._pass.sums
        # Outside a tower pass this is a block re-run by gradient checkpointing: nothing to add.
        if sums is None:
            return
        for index, block in enumerate(self.layout.blocks):
            if state in block.layers:
                term = hidden.float() if hidden.dtype != torch.float64 else hidden
                total = sums[index]
                # Sums are fp32: a group of large fp16 states would overflow.
                sums[index] = term if total is None else total.to(term.device) + term

    def extend(self, site: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Hook of the site: return its output plus D g."""
        ready, self._pass.ready = self._pass.ready, None
        if ready is None:
            raise RequestError(
                "the projector ran without the vision tower: the dense connector has no states",
                hint="pass pixel_values to the model, not precomputed tower features",
            )
        blocks = zip(ready, self.layout.blocks, strict=True)
        means = [self._rows(total / len(block.layers)) for total, block in blocks]
        joined = torch.cat([mean.to(self.weight.device) for mean in means], dim=-1)
        added = functional.linear(joined.to(self.weight.dtype), self.weight)
        if added.numel() != output.numel():
            raise RequestError(
                f"the projector read {output.numel() // output.shape[-1]} tokens but the vision "
                f"tower gave {added.numel() // added.shape[-1]}",
                hint="the projector must run on the tower's latest output",
            )
        return output + added.reshape(output.shape).to(output)

    def _rows(self, state: Tensor) -> Tensor:
        if self.arrange is not None:
            return self.arrange(self._owner[0], state)
        return state[:, self.dropped :] if self.dropped else state

    def refuse_save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Stand-in for save_pretrained: stock code would load the result as the base."""
        raise RequestError(
            "save_pretrained on an upgraded model would write a folder that plain transformers "
            "loads as the unmodified base",
            hint="save dense_connector.weight as the delta's tensor, or convert with --form stock",
        )


class _Collector:
    """Forward hook of one block: adds its output, hidden state `state`."""

    def __init__(self, connector: DenseConnector, state: int) -> None:
        self.connector = connector
        self.state = state

    def __call__(self, block: nn.Module, args: Any, output: Any) -> None:
        self.connector._collect(self.state, output[0] if isinstance(output, tuple) else output)


def find_module(model: nn.Module, suffix: str) -> nn.Module:
    """Return the one module whose dotted name ends with `suffix`, "vision_model." inside ignored.

    Raises AnatomyError unless there is exactly one.
    """
    first, _, rest = suffix.partition(".")
    inner = rf"\.(?:vision_model\.)?{re.escape(rest)}" if rest else ""
    pattern = re.compile(rf"(?:^|\.){re.escape(first)}{inner}$")
    found = [(name, module) for name, module in model.named_modules() if pattern.search(name)]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise AnatomyError(
            f"{type(model).__name__} should have one module named ...{suffix}, found {names}",
            hint="the installed transformers may name it otherwise; report this with its version",
        )
    module: nn.Module = found[0][1]
    return module


def attach(
    model: nn.Module,
    anatomy: Anatomy,
    layout: FeatureLayout,
    arrange: Arrange | None = None,
    weight: Tensor | None = None,
) -> DenseConnector:
    """Register a DenseConnector on `model` as `dense_connector` and return it.

    `weight` is D [out, G * width]; zeros when None, which leaves every output bit-equal. Other
    parameters keep their names, the model its class. Raises AnatomyError when the model does not
    match the anatomy, RequestError when it already has a connector.
    """
    if hasattr(model, "dense_connector"):
        raise RequestError("the model already has a dense connector", hint="load the base again")
    site = find_module(model, anatomy.projector.site)
    blocks = find_module(model, anatomy.tower.blocks)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != anatomy.tower.depth:
        raise AnatomyError(
            f"{anatomy.tower.blocks} should be a list of {anatomy.tower.depth} blocks",
            hint="the plan belongs to another model",
        )
    own = next(site.parameters())
    # 4-bit sites hold integers: a new matrix must be floating.
    dtype = own.dtype if own.is_floating_point() else torch.get_default_dtype()
    shape = (anatomy.projector.out_features, _width(anatomy) * len(layout.blocks))
    if weight is None:
        weight = torch.zeros(shape)
    elif tuple(weight.shape) != shape:
        raise AnatomyError(
            f"the connector matrix is {list(weight.shape)}, the model needs {list(shape)}",
            hint="the delta belongs to another base; see base in dense_connector/plan.json",
        )
    connector = DenseConnector(anatomy, layout, weight.to(device=own.device, dtype=dtype))
    connector.arrange = arrange
    if arrange is not None:
        connector._owner = [model]
    _hook(connector, find_module(model, anatomy.tower.blocks.partition(".")[0]), blocks, site)
    model.dense_connector = connector
    model.save_pretrained = connector.refuse_save  # type: ignore[assignment]
    return connector


def _hook(
    connector: DenseConnector, tower: nn.Module, blocks: nn.ModuleList, site: nn.Module
) -> None:
    tower.register_forward_pre_hook(connector.open_pass)
    tower.register_forward_hook(connector.close_pass)
    for layer in connector.layout.layers:
        if layer == 0:
            blocks[0].register_forward_pre_hook(connector.collect_first, with_kwargs=True)
        else:
            blocks[layer - 1].register_forward_hook(_Collector(connector, layer))
    site.register_forward_hook(connector.extend)


def _width(anatomy: Anatomy) -> int:
    return anatomy.projector.in_features // len(anatomy.feature_layers)
