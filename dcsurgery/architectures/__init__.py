"""The families dcsurgery can retrofit: one file each, the file is the registration."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from dcsurgery.anatomy import Anatomy
from dcsurgery.checkpoint.headers import TensorEntry
from dcsurgery.errors import UnknownArchitectureError

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["stock", "delta"]
Config = dict[str, Any]
Tensors = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Architecture:
    """One family of checkpoints.

    `class_names` are the values of config["architectures"][0] it answers to (model_type collides
    between families). `dissect` reads the anatomy from config and tensor shapes, without torch.
    `arrange` turns one hidden state [B, N, C] into rows of the projector's first matrix, without
    any norm; None drops the prefix tokens the anatomy says are dropped. `stock_config` returns a
    copy of the config that makes stock code read the given hidden states; None when it has no words
    for it. `stock_loader` says what loads the stock form; `checkpoints` are public examples.
    """

    name: str
    class_names: tuple[str, ...]
    dissect: Callable[[Config, Tensors], Anatomy]
    checkpoints: tuple[str, ...]
    arrange: Callable[[Any, Tensor], Tensor] | None = None
    stock_config: Callable[[Config, Sequence[int]], Config] | None = None
    stock_loader: str = ""

    @property
    def forms(self) -> tuple[Form, ...]:
        """Output forms this family can take."""
        return ("stock", "delta") if self.stock_config else ("delta",)


@cache
def available() -> tuple[Architecture, ...]:
    """Every architecture in this package, by name."""
    names = (item.name for item in pkgutil.iter_modules(__path__))
    modules = (
        importlib.import_module(f"{__name__}.{name}") for name in names if not name.startswith("_")
    )
    return tuple(sorted((module.ARCHITECTURE for module in modules), key=lambda found: found.name))


def find_architecture(config: Config) -> Architecture:
    """Return the architecture of a config by its class name.

    Raises UnknownArchitectureError, with what was found and what to do, for everything else.
    """
    declared = config.get("architectures")
    name = declared[0] if isinstance(declared, list) and declared else None
    for architecture in available():
        if name in architecture.class_names:
            return architecture
    known = ", ".join(name for found in available() for name in found.class_names)
    if config.get("mm_vision_tower") or str(name).startswith(("LlavaLlama", "LlavaMistral")):
        raise UnknownArchitectureError(
            f"this is a LLaVA checkpoint in its original format (class {name}, "
            f"vision tower {config.get('mm_vision_tower')!r} named in the config)",
            hint="use the Hugging Face conversion of the same model, for example "
            "llava-hf/llava-1.5-7b-hf for liuhaotian/llava-v1.5-7b",
        )
    raise UnknownArchitectureError(
        f"model class {name!r} (model_type {config.get('model_type')!r}) is not supported",
        hint=f"supported classes: {known}",
    )
