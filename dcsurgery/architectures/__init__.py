"""The families dcsurgery can retrofit: rows of `table`, and a file for what is unusual."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures._refused import REFUSED, original_format
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.errors import UnknownArchitectureError
from dcsurgery.features import Columns, FeatureLayout, joined_columns

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["stock", "delta", "portable", "reference"]
Config = dict[str, Any]
Tensors = Mapping[str, TensorEntry]


def _side_by_side(anatomy: Anatomy, layers: Sequence[int]) -> Columns:
    return joined_columns(layers, anatomy.feature_layers, anatomy.feature_width)


@dataclass(frozen=True)
class Architecture:
    """One family of checkpoints.

    `class_names` are the values of config["architectures"][0] it answers to (model_type collides
    between families). `dissect` reads the anatomy from config and tensor shapes, without torch.
    `checkpoints` are public examples, `towers` says in a few words which vision towers they have.

    `arrange(run, state)` turns one hidden state [B, N, C] of a tower pass into what the asking site
    (run.site) reads of it, without any norm: one tensor [..., width] for each call of that site in
    the pass, which is one unless the projector runs picture by picture. None cuts the leading
    tokens the anatomy says are dropped.

    `parameter_names` are (old, new) parts of names where published files call the projector's
    tensors otherwise than the loaded model does.

    `stock_config` returns a copy of the config that makes stock code read the given hidden states,
    ascending; None when it has no words for it. `stock_columns` says where the folded matrix keeps
    each state, `stock_loader` what loads the result.

    `processor(config, anatomy, layout)` returns a copy of processor_config.json that counts the
    image tokens of a connector which changes them, `token_connectors` which do ("sti", "pool");
    `resize(model, layout)` tells a loaded model's own code the new token grid.

    The rest serves verification where transformers' usual way does not fit: `preprocess(config,
    images)` prepares PIL images without a processor's files, `encode(model, inputs)` returns
    projected image features [tokens, width], `prompt(model, inputs, ids)` adds what the forward
    pass needs beside token ids [1, T] and image inputs, or replaces the ids.

    `portable` is False where the portable form cannot build on a class of transformers, or does not
    know how the family arranges its patches.
    """

    name: str
    class_names: tuple[str, ...]
    dissect: Callable[[Config, Tensors], Anatomy]
    checkpoints: tuple[str, ...]
    towers: str = ""
    arrange: Callable[[Any, Tensor], list[Tensor]] | None = None
    parameter_names: tuple[tuple[str, str], ...] = ()
    stock_config: Callable[[Config, Sequence[int]], Config] | None = None
    stock_columns: Callable[[Anatomy, Sequence[int]], Columns] = _side_by_side
    stock_loader: str = ""
    processor: Callable[[Config, Anatomy, FeatureLayout], Config] | None = None
    token_connectors: tuple[str, ...] = ()
    resize: Callable[[Any, FeatureLayout], None] | None = None
    preprocess: Callable[[Config, Sequence[Any]], dict[str, Tensor]] | None = None
    encode: Callable[[Any, dict[str, Tensor]], Tensor] | None = None
    prompt: Callable[[Any, dict[str, Tensor], Tensor], dict[str, Tensor]] | None = None
    portable: bool = True

    @property
    def forms(self) -> tuple[Form, ...]:
        """Output forms this family can take."""
        stock: tuple[Form, ...] = ("stock",) if self.stock_config else ()
        return (*stock, "delta", *(("portable",) if self.portable else ()))

    def parameter_name(self, tensor: str) -> str:
        """Return what the loaded model calls a projector's tensor, prefixes of its path aside."""
        for old, new in self.parameter_names:
            tensor = tensor.replace(old, new)
        return tensor


@cache
def available() -> tuple[Architecture, ...]:
    """Every architecture in this package, by name."""
    names = (item.name for item in pkgutil.iter_modules(__path__))
    modules = (
        importlib.import_module(f"{__name__}.{name}") for name in names if not name.startswith("_")
    )
    found = [architecture for module in modules for architecture in module.ARCHITECTURES]
    return tuple(sorted(found, key=lambda architecture: architecture.name))


def named(name: str) -> Architecture:
    """Return the architecture a plan names. Raises UnknownArchitectureError."""
    for architecture in available():
        if architecture.name == name:
            return architecture
    raise UnknownArchitectureError(
        f"architecture {name!r} is unknown to this version", hint="update dcsurgery"
    )


def find_architecture(config: Config) -> Architecture:
    """Return the architecture of a config by its class name.

    Raises UnknownArchitectureError, with what was found and what to do, for everything else.
    """
    declared = config.get("architectures")
    name = declared[0] if isinstance(declared, list) and declared else None
    for architecture in available():
        if name in architecture.class_names:
            return architecture
    if original_format(config, str(name)):
        raise UnknownArchitectureError(
            f"this is a LLaVA checkpoint in its original format (class {name}, "
            f"vision tower {config.get('mm_vision_tower')!r} named in the config)",
            hint="use the Hugging Face conversion of the same model, for example "
            "llava-hf/llava-1.5-7b-hf for liuhaotian/llava-v1.5-7b",
        )
    if isinstance(name, str) and name in REFUSED:
        raise UnknownArchitectureError(
            f"{name} cannot take a dense connector: {REFUSED[name]}",
            hint="run `dcsurgery architectures` to see the families that can",
        )
    raise UnknownArchitectureError(
        f"model class {name!r} (model_type {config.get('model_type')!r}) is not supported",
        hint="run `dcsurgery architectures` to see the supported families",
    )
