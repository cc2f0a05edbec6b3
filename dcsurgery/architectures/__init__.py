"""The families dcsurgery can retrofit: rows of `table`, and a file for what is unusual."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures._known import KNOWN, OWN_CODE, find_known
from dcsurgery.architectures._refused import REFUSED
from dcsurgery.architectures._steps import Steps, crop
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
class Counting:
    """How a processor counts the image tokens of a picture (of a tile where it cuts tiles).

    `words` are the keys of processor_config.json as config.json decides them, `defaults` what its
    class takes for absent ones, `count(words)` the tokens it writes. Words `of_images` are those of
    the image processor, in a file that no conversion changes.
    """

    class_name: str
    words: Config
    defaults: Config
    count: Callable[[Config], int]
    of_images: bool = False


@dataclass(frozen=True)
class Architecture:
    """One family of checkpoints.

    `class_names` are the values of config["architectures"][0] it answers to (model_type collides
    between families). `dissect` reads the anatomy from config and tensor shapes, without torch.
    `checkpoints` are public examples, `towers` says in a few words which vision towers they have.

    `steps(anatomy, config)` are what lies between a tower and the first matrix, without any norm,
    in the words of the code that portable folders bring along. The default cuts the leading tokens
    that the anatomy says are dropped. `rows(run, state)` replaces `arrange` where that code has no
    words for a family, which then has no portable form.

    `parameter_names` are (old, new) parts of names where published files call the projector's
    tensors otherwise than the loaded model does.

    `stock_config` returns a copy of the config that makes stock code read the given hidden states,
    ascending; None when it has no words for it. `stock_columns` says where the folded matrix keeps
    each state, `stock_loader` what loads the result.

    `processor(config, anatomy, layout)` returns a copy of processor_config.json that counts the
    image tokens of a connector which changes them, `token_connectors` which do ("sti", "pool");
    `counting(anatomy)` says how the processor counts, None where that is not known;
    `resize(model, layout)` tells a loaded model's own code the new token grid.

    The rest serves verification where transformers' usual way does not fit: `preprocess(config,
    images)` prepares PIL images without a processor's files, `encode(model, inputs)` returns
    projected image features [tokens, width], `prompt(model, inputs, ids)` adds what the forward
    pass needs beside token ids [1, T] and image inputs, or replaces the ids.
    """

    name: str
    class_names: tuple[str, ...]
    dissect: Callable[[Config, Tensors], Anatomy]
    checkpoints: tuple[str, ...]
    towers: str = ""
    steps: Callable[[Anatomy, Config], Steps] = crop
    rows: Callable[[Any, Tensor], list[Tensor]] | None = None
    parameter_names: tuple[tuple[str, str], ...] = ()
    stock_config: Callable[[Config, Sequence[int]], Config] | None = None
    stock_columns: Callable[[Anatomy, Sequence[int]], Columns] = _side_by_side
    stock_loader: str = ""
    processor: Callable[[Config, Anatomy, FeatureLayout], Config] | None = None
    token_connectors: tuple[str, ...] = ()
    counting: Callable[[Anatomy], Counting] | None = None
    resize: Callable[[Any, FeatureLayout], None] | None = None
    preprocess: Callable[[Config, Sequence[Any]], dict[str, Tensor]] | None = None
    encode: Callable[[Any, dict[str, Tensor]], Tensor] | None = None
    prompt: Callable[[Any, dict[str, Tensor], Tensor], dict[str, Tensor]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A model with a connector holds its family: copies and pickles refer to it by name."""
        return named, (self.name,)

    @property
    def portable(self) -> bool:
        """Whether the code that portable folders bring along knows the family."""
        return self.rows is None

    def arrange(self, run: Any, state: Tensor) -> list[Tensor]:
        """Return one hidden state [B, N, C] of a TowerPass as the asking site (run.site) reads it.

        One tensor [..., width] for each call of that site in the pass, which is one unless the
        projector runs picture by picture.
        """
        if self.rows is not None:
            return self.rows(run, state)
        from dcsurgery.modeling.modeling_dense_connector import arrange

        spec = {"arrange": self.steps(run.anatomy, vars(run.model.config))}
        sites = run.anatomy.projector.sites
        known = SimpleNamespace(spec=spec, sites=sites, tower=run.tower, argument=run.argument)
        found: list[list[Tensor]] = arrange(known, state, run.site_rows)  # type: ignore[no-untyped-call]
        return found[run.site if len(found) > 1 else 0]

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


def class_name(config: Config) -> str:
    """Return the class a config is of: what it says, else the one its model_type stands for.

    Empty where it says neither.
    """
    declared = config.get("architectures")
    if declared:
        return str(declared[0]) if isinstance(declared, list) else ""
    return _class_of_type(config)


def _class_of_type(config: Config) -> str:
    plain = re.sub("[_.-]", "", str(config.get("model_type"))).lower()
    named = [name for found in available() for name in found.class_names]
    named += [*REFUSED, *(name for known in KNOWN for name in known.class_names)]
    return next((name for name in named if _letters(name) == plain), "")


def _letters(name: str) -> str:
    return re.sub(r"_|(For[A-Z]\w+|CausalLM|Model)$", "", name).lower()


def _supported(name: str) -> bool:
    return any(name in architecture.class_names for architecture in available())


def find_architecture(config: Config) -> Architecture:
    """Return the architecture of a config by its class name.

    Raises UnknownArchitectureError, with what was found and what to do, for everything else.
    """
    name = class_name(config)
    for architecture in available():
        if name in architecture.class_names:
            return architecture
    refuse_known(config)
    if config.get("mm_vision_tower"):
        raise UnknownArchitectureError(
            f"this is a LLaVA in an original format (class {name}, vision tower "
            f"{str(config['mm_vision_tower'])[:200]!r} named in the config) that this "
            "version does not read",
            hint="use the repository that the same model has in transformers' format, such as "
            "llava-hf/llava-1.5-7b-hf for liuhaotian/llava-v1.5-7b",
        )
    raise _unknown(config, name)


def _unknown(config: Config, name: str) -> UnknownArchitectureError:
    hint = "run `dcsurgery architectures` to see the supported families"
    whole, why = _class_of_type(config), ""
    if isinstance(config.get("architectures"), str):
        name, why = config["architectures"], ": config.json must have it in a list"
        hint = f'write "architectures": [{json.dumps(name[:200])}]'
    elif _supported(whole):
        why = f": {whole} is the one of its family that answers questions about pictures"
        hint = f"name a checkpoint of that class, or {hint}"
    elif name.endswith("ForCausalLM") and not any("vis" in key for key in config):
        why = ": it is a language model alone and sees no pictures"
    elif config.get("auto_map"):
        why = f": {OWN_CODE}"
    kind = f"(model_type {config.get('model_type')!r})"
    told = f"model class {name or None!r} {kind} is not supported{why}"
    return UnknownArchitectureError(told, hint=hint)


def refuse_known(config: Config) -> None:
    """Refuse a model that is known, and known not to be readable as it is.

    Raises UnknownArchitectureError: what it is, then the repository to use or the reason.
    """
    if isinstance(config.get("quantization"), dict) and "group_size" in config["quantization"]:
        raise UnknownArchitectureError(
            f"this is an MLX conversion, quantised to {config['quantization'].get('bits')} bits",
            hint="convert the model it was made from; its README names it",
        )
    if config.get("s2") and config.get("mm_vision_tower"):
        raise UnknownArchitectureError(
            "this is a LLaVA with S2: its projector reads the tower at several scales "
            f"({config.get('s2_scales')}) side by side, which transformers' LLaVA cannot express",
            hint="use the model that was trained without S2",
        )
    name = class_name(config)
    if _supported(name):
        return
    if find_known(name) is None and name not in REFUSED and "mm_vision_tower" not in config:
        # Another version of a known kind keeps its type: MiniCPMV4_5 is a minicpmv. Originals of
        # LLaVA borrow theirs.
        name = _class_of_type(config)
        if _supported(name):
            return
    known = find_known(name)
    families = "run `dcsurgery architectures` to see the families that can"
    if known is not None and known.twin:
        raise UnknownArchitectureError(
            f"{name} is the class of {known.repositories[0]} and its kind: {known.why}",
            hint=f"use {known.twin}: the model in transformers' format",
        )
    reason = REFUSED.get(name) or (known and known.why)
    if reason:
        raise UnknownArchitectureError(
            f"{name} cannot take a dense connector: {reason}", hint=families
        )
