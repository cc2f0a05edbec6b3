"""Which parameters a training may change: announced first, then exactly those get gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcsurgery.architectures import named
from dcsurgery.connectors.attach import find_module
from dcsurgery.errors import AnatomyError, TrainingError
from dcsurgery.surgery.plan_file import ADAPTED, CONNECTOR_PREFIX, SurgeryPlan
from dcsurgery.training.settings import TrainingSettings

# In the order in which they are told; a group has its own learning rate.
GROUPS = ("connector", "projector", "language", "tower")


@dataclass(frozen=True)
class Trained:
    """The parameters that are trained: their names by group, and how many numbers they hold."""

    groups: dict[str, tuple[str, ...]]
    counts: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, group by group."""
        return tuple(name for group in self.groups.values() for name in group)

    @property
    def count(self) -> int:
        """Numbers that are trained."""
        return sum(self.counts.values())

    def group_of(self, name: str) -> str:
        """Return the group of a trained parameter."""
        return next(group for group, names in self.groups.items() if name in names)


def choose(model: nn.Module, plan: SurgeryPlan, settings: TrainingSettings) -> Trained:
    """Return what `settings.train` names in an attached model; nothing is changed.

    A connector whose rate is 0 stays as it is. With LoRA the adapters must be in place already.
    Raises TrainingError where a group is empty, AnatomyError when the model is not the plan's.
    """
    parameters = dict(model.named_parameters())
    connector = [name for name in parameters if name.startswith(CONNECTOR_PREFIX)]
    if settings.train == "connector" and not connector:
        raise TrainingError(
            f"a {plan.kind} connector has no parameters of its own",
            hint="use --train projector",
        )
    # Left alone: its gradient has no share in the norm that the others are cut to.
    still = settings.connector_lr == 0
    if settings.train == "connector" and still:
        raise TrainingError(
            "--train connector with a rate of 0 trains nothing", hint="leave out --connector-lr"
        )
    groups: dict[str, Sequence[str]] = {"connector": () if still else connector}
    projector = projector_names(parameters, plan)
    if settings.train != "connector":
        groups["projector"] = projector
    if settings.train == "full" and getattr(model, "peft_config", None):
        raise TrainingError(
            "the language model has a LoRA adapter of an earlier training",
            hint="merge it first, as finetune does, or go on with --train lora",
        )
    if settings.train == "lora":
        groups["language"] = [name for name in parameters if ADAPTED in name]
    elif settings.train == "full":
        groups["language"] = _language(model, parameters)
    if settings.train_tower:
        groups["tower"] = sorted(_tower(model, plan, parameters) - {*projector, *connector})
    chosen = {name: tuple(groups[name]) for name in GROUPS if groups.get(name)}
    counts = {name: sum(parameters[p].numel() for p in of) for name, of in chosen.items()}
    return Trained(chosen, counts)


def projector_names(parameters: Iterable[str], plan: SurgeryPlan) -> list[str]:
    """Return the names of the parameters of a loaded model's projector, and of what learns with it.

    Raises AnatomyError.
    """
    architecture = named(plan.architecture)
    names, found = list(parameters), []
    for tensor in (*plan.anatomy.projector.tensors, *plan.anatomy.projector.beside):
        wanted = architecture.parameter_name(tensor)
        same = [name for name in names if name == wanted or name.endswith("." + wanted)]
        if len(same) != 1:
            raise AnatomyError(
                f"the model has {len(same)} parameters named ...{wanted}",
                hint="the installed transformers may name it otherwise; report this",
            )
        found += same
    return found


def language_path(model: Any) -> str:
    """Return the dotted path of the language model: the module that holds the word embeddings."""
    words = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is words)
    return str(path.rpartition(".")[0])


def _language(model: Any, parameters: Iterable[str]) -> list[str]:
    head = model.get_output_embeddings()
    heads = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    inside = language_path(model) + "."
    known = dict(model.named_parameters())
    return [name for name in parameters if name.startswith(inside) or id(known[name]) in heads]


def _tower(model: nn.Module, plan: SurgeryPlan, parameters: Iterable[str]) -> set[str]:
    inside: set[int] = set()
    for module, _ in plan.anatomy.tower.paths:
        inside |= {id(parameter) for parameter in find_module(model, module).parameters()}
    known = dict(model.named_parameters())
    return {name for name in parameters if id(known[name]) in inside}


def freeze(model: nn.Module, trained: Trained) -> None:
    """Give gradients to exactly the announced parameters, which become fp32.

    Raises TrainingError for a quantised one.
    """
    names = set(trained.names)
    for name, parameter in model.named_parameters():
        wanted = name in names
        if wanted and not parameter.is_floating_point():
            raise TrainingError(
                f"{name} is quantised and cannot be trained",
                hint="leave out --quantize, or train less: --train lora or connector",
            )
        parameter.requires_grad_(wanted)
        if wanted and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def without_unused(model: nn.Module, trained: Trained, loss: Tensor) -> Trained:
    """Return `trained` without the tower's parameters that a loss does not depend on.

    Blocks after the last state that is read, heads, norms and twins for other inputs are no part of
    the model's function. Raises TrainingError when nothing of the tower is.
    """
    parameters = dict(model.named_parameters())
    names = trained.groups["tower"]
    slopes = torch.autograd.grad(loss, [parameters[n] for n in names], allow_unused=True)
    used = tuple(name for name, slope in zip(names, slopes, strict=True) if slope is not None)
    if not used:
        raise TrainingError(
            "no row with an image was found, so the vision tower has nothing to learn from",
            hint="leave out --train-tower, or give data with images",
        )
    groups = {**trained.groups, "tower": used}
    return Trained(groups, {**trained.counts, "tower": sum(parameters[n].numel() for n in used)})


def frozen_modules(model: nn.Module, plan: SurgeryPlan) -> list[nn.Module]:
    """Return the modules that must not be in train mode: those in which nothing is trained.

    Dropout and drop paths would only add noise there. Outside the tower, modules that checkpoint
    their activations are left out: they do so in train mode alone.
    """
    towers: set[int] = set()
    for name, _ in plan.anatomy.tower.paths:
        towers |= {id(module) for module in find_module(model, name).modules()}
    found: list[nn.Module] = []
    waiting = [model]
    while waiting:
        module = waiting.pop()
        parameters = list(module.parameters())
        if not parameters or any(item.requires_grad for item in parameters):
            waiting += module.children()
            continue
        for inner in module.modules():
            if id(inner) in towers or not getattr(inner, "gradient_checkpointing", False):
                found.append(inner)
    return found
