"""Install a connector on a loaded model: hooks on the tower's blocks and the projector's sites."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors import connector_shapes
from dcsurgery.connectors.module import Arrange, DenseConnector
from dcsurgery.connectors.passes import block_input
from dcsurgery.errors import AnatomyError, RequestError
from dcsurgery.features import FeatureLayout


class _Hook:
    """A hook that carries a number or a name; methods of one connector, so that copies rebind."""

    def __init__(self, connector: DenseConnector, key: Any) -> None:
        self.connector = connector
        self.key = key


class _Open(_Hook):
    def __call__(self, tower: nn.Module, args: Any, kwargs: Any) -> None:
        self.connector("open_pass", self.key, args, kwargs)


class _Close(_Hook):
    def __call__(self, tower: nn.Module, args: Any, output: Any) -> None:
        self.connector.close_pass()


class _CollectInput(_Hook):
    def __call__(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self.connector.collect(0, block_input(args, kwargs), block)


class _CollectOutput(_Hook):
    def __call__(self, block: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self.connector.collect(self.key, hidden, block)


class _Enter(_Hook):
    def __call__(self, projector: nn.Module, args: Any, kwargs: Any) -> None:
        self.connector.enter_projector(args, kwargs)


class _Extend(_Hook):
    def __call__(self, site: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self.connector("extend", self.key, output)  # type: ignore[no-any-return]


class _Append(_Hook):
    def __call__(self, site: nn.Module, args: Any) -> tuple[Any, ...]:
        return (self.connector("append", args[0]), *args[1:])


class _Pool(_Hook):
    def __call__(self, projector: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self.connector.pool(output)


def find_module(model: nn.Module, suffix: str) -> nn.Module:
    """Return the one module whose dotted name ends with `suffix`, "(vision_)model." inside ignored.

    Raises AnatomyError unless there is exactly one.
    """
    first, _, rest = suffix.partition(".")
    inner = rf"\.(?:(?:vision_)?model\.)?{re.escape(rest)}" if rest else ""
    pattern = re.compile(rf"(?:^|\.){re.escape(first)}{inner}$")
    found = [(name, module) for name, module in model.named_modules() if pattern.search(name)]
    # A tower that wraps another of the same name ("vision_model.vision_model"): the outer one runs.
    outer = [pair for pair in found if not any(pair[0].startswith(f"{n}.") for n, _ in found)]
    if len(outer) != 1:
        names = ", ".join(name for name, _ in found) or "none"
        raise AnatomyError(
            f"{type(model).__name__} should have one module named ...{suffix}, found {names}",
            hint="the installed transformers may name it otherwise; report this with its version",
        )
    module: nn.Module = outer[0][1]
    return module


def attach(
    model: nn.Module,
    anatomy: Anatomy,
    layout: FeatureLayout,
    arrange: Arrange | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> DenseConnector:
    """Register a DenseConnector on `model` as `dense_connector` and return it.

    `tensors` are the connector's own by their name in it ("weight": D [rows, G * width], "mix",
    "norm_weight", "norm_bias"); what is left out starts as it should: D at zero, which leaves every
    output bit-equal. Other parameters keep their names, the model its class. Raises AnatomyError
    when the model does not match the anatomy, RequestError when it already has a connector.
    """
    if hasattr(model, "dense_connector"):
        raise RequestError("the model already has a dense connector", hint="load the base again")
    sites = [find_module(model, site.module) for site in anatomy.projector.sites]
    connector = DenseConnector(anatomy, layout, arrange)
    _fill(connector, sites[0], tensors or {})
    hook_states(model, connector)
    _hook_sites(connector, model, sites)
    model.dense_connector = connector
    model.save_pretrained = connector.refuse_save  # type: ignore[assignment]
    return connector


def hook_states(model: nn.Module, connector: DenseConnector) -> None:
    """Let a connector collect the hidden states of its layout; nothing of the model changes.

    Raises AnatomyError, before the first hook, when the model does not match the anatomy.
    """
    anatomy = connector.anatomy
    towers = []
    for module, blocks in anatomy.tower.paths:
        found = find_module(model, blocks)
        if not isinstance(found, nn.ModuleList) or len(found) != anatomy.tower.depth:
            raise AnatomyError(
                f"{blocks} should be a list of {anatomy.tower.depth} blocks",
                hint="the plan belongs to another model",
            )
        towers.append((module, find_module(model, module), found))
    name = anatomy.projector.module
    projector = find_module(model, name) if name else None
    connector._owner = [model]
    for module, tower, found in towers:
        _hook_tower(connector, module, tower, found)
    if projector is not None:
        hook = _Enter(connector, name)
        connector._handles.append(projector.register_forward_pre_hook(hook, with_kwargs=True))


def _fill(connector: DenseConnector, site: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = next(site.parameters())
    device = _device(site, own)
    # 4-bit sites hold integers: a new matrix must be floating.
    dtype = own.dtype if own.is_floating_point() else torch.get_default_dtype()
    for name, shape in connector_shapes(connector.anatomy, connector.layout).items():
        value = tensors.get(name)
        if value is None:
            value = torch.ones(shape) if name == "norm_weight" else torch.zeros(shape)
        elif tuple(value.shape) != shape:
            raise AnatomyError(
                f"the connector's {name} is {list(value.shape)}, the model needs {list(shape)}",
                hint="the delta belongs to another base; see base in dense_connector/plan.json",
            )
        kept = dtype if name == "weight" else torch.float32
        setattr(connector, name, nn.Parameter(value.to(device=device, dtype=kept)))


def _device(site: nn.Module, own: Tensor) -> torch.device:
    """Where the site computes: its weights lie on "meta" while accelerate keeps them elsewhere."""
    if own.device.type != "meta":
        return own.device
    hook = getattr(site, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


def detach(model: nn.Module) -> None:
    """Take the connector off a model that `attach` upgraded: it computes as the base again.

    Raises RequestError when there is none.
    """
    connector = getattr(model, "dense_connector", None)
    if not isinstance(connector, DenseConnector):
        raise RequestError("the model has no dense connector", hint="attach one first")
    for handle in connector._handles:
        handle.remove()
    del model.dense_connector, model.save_pretrained


def _hook_tower(
    connector: DenseConnector, name: str, tower: nn.Module, blocks: nn.ModuleList
) -> None:
    keep = connector._handles.append
    keep(tower.register_forward_pre_hook(_Open(connector, name), with_kwargs=True))
    for layer in connector.layout.layers:
        if layer == 0:
            hook = _CollectInput(connector, 0)
            keep(blocks[0].register_forward_pre_hook(hook, with_kwargs=True))
        else:
            keep(blocks[layer - 1].register_forward_hook(_CollectOutput(connector, layer)))
    keep(tower.register_forward_hook(_Close(connector, name)))


def _hook_sites(connector: DenseConnector, model: nn.Module, sites: list[nn.Module]) -> None:
    keep = connector._handles.append
    if connector.layout.axis == "token":
        keep(sites[0].register_forward_pre_hook(_Append(connector, 0)))
    else:
        for index, site in enumerate(sites):
            keep(site.register_forward_hook(_Extend(connector, index)))
    if connector.layout.pool > 1:
        name = connector.anatomy.projector.sites[0].module.partition(".")[0]
        keep(find_module(model, name).register_forward_hook(_Pool(connector, name)))
