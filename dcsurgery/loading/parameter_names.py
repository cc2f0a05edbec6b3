"""Which tensor of a checkpoint a loaded model's parameter is, by the loader's own renaming.

transformers renames tensors while it loads (prefixes moved between versions, families were
refactored) and joins or splits some. A renamed tensor has one parameter; of joined and split ones
no parameter is the tensor's own, so they have none here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dcsurgery.architectures import Architecture, find_architecture
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.surgery.plan_file import CONNECTOR_PREFIX, PEFT_MODEL

if TYPE_CHECKING:
    from torch import Tensor, nn

# How peft calls a module with an adapter beside it.
PEFT_MODULE = ".base_layer."


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside what data parallelism and peft put around it."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def plain_name(parameter: str) -> str:
    """Return a parameter's name as it is without peft around the model or its modules."""
    return parameter.removeprefix(PEFT_MODEL).replace(PEFT_MODULE, ".")


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by its plain name; tied ones under each of their names."""
    return {plain_name(k): v for k, v in model.named_parameters(remove_duplicate=False)}


def stored_tensors(model: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """Return tensor -> plain name of its parameter, for every tensor that is one parameter."""
    model = unwrapped(model)
    architecture = find_architecture(checkpoint.config)
    anatomy = architecture.dissect(checkpoint.config, checkpoint.tensors)
    parameters = plain_parameters(model)
    found = {name: name for name in parameters if name.startswith(CONNECTOR_PREFIX)}
    renamed = renamed_tensors(model, checkpoint.tensors)
    found |= {tensor: name for tensor, name in renamed.items() if name in parameters}
    return found | projector_parameters(parameters, architecture, anatomy.projector.tensors)


def projector_parameters(
    parameters: Iterable[str], architecture: Architecture, tensors: Iterable[str]
) -> dict[str, str]:
    """Return tensor -> parameter for tensors of the projector, by suffix; module paths gain
    prefixes. A tensor without exactly one parameter is left out.
    """
    names, found = list(parameters), {}
    for tensor in tensors:
        wanted = architecture.parameter_name(tensor)
        same = [name for name in names if name == wanted or name.endswith("." + wanted)]
        if len(same) == 1:
            found[tensor] = same[0]
    return found


def renamed_tensors(model: Any, tensors: Iterable[str]) -> dict[str, str]:
    """Return tensor -> parameter for the tensors that transformers loads whole under one name.

    `tensors` are all of the checkpoint: some renamings wait for one name before they do another.
    """
    state = _plain_state(model)
    found: dict[str, str] = {}
    rename = _renaming(model, state)
    for tensor in sorted(tensors):
        name, converted = rename(tensor)
        if name not in state and tensor in state:
            name, converted = rename(tensor, ruled=False)
        if converted is None and name in state:
            found[tensor] = name
    return found


def needed_tensors(model: Any, tensors: Iterable[str]) -> list[str]:
    """Return the tensors of a checkpoint that a model is loaded from, the words left out.

    Joined and split ones count where what they become is in the model.
    """
    state = model.state_dict()
    words = {id(p) for p in word_parameters(model)}
    left = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in words}
    rename = _renaming(model, state)
    found = []
    for tensor in sorted(tensors):
        names = (rename(tensor)[0], rename(tensor, ruled=False)[0])
        if any(name in state and name not in left for name in names):
            found.append(tensor)
    return found


def _renaming(model: Any, state: Mapping[str, Tensor]) -> Callable[..., tuple[str, str | None]]:
    """Return what gives a tensor the name under which transformers loads it.

    rename(tensor) follows the rules of the model's type, with `ruled=False` those of its prefix
    alone; the second value is the pattern of a rule that joins or splits tensors, else None.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix: str = model.base_model_prefix

    def rename(tensor: str, *, ruled: bool = True) -> tuple[str, str | None]:
        given = (renamings, converters) if ruled else ([], [])
        found: tuple[str, str | None] = rename_source_key(tensor, *given, prefix, state)
        return found

    return rename


def word_parameters(model: Any) -> list[nn.Parameter]:
    """Return the matrices of the words: embeddings and head."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [parameter for end in ends if end is not None for parameter in end.parameters()]


def _plain_state(model: nn.Module) -> Mapping[str, Tensor]:
    state: dict[str, Tensor] = model.state_dict()
    return {plain_name(k): v for k, v in state.items() if not k.startswith(CONNECTOR_PREFIX)}
