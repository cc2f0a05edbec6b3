"""Which files of a folder are the weights, and where they say each tensor is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dcsurgery.checkpoint import checks
from dcsurgery.checkpoint.model_ref import ModelRef
from dcsurgery.checkpoint.other_formats import refuse_folder, refuse_parts
from dcsurgery.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    MalformedCheckpointError,
    RequestError,
)

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DELTA_PLAN = "dense_connector/plan.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
# What a training of LLaVA leaves beside or instead of a model.
PARTS = ("mm_projector.", "adapter_model.", "non_lora_trainables.")


@dataclass(frozen=True)
class Layout:
    """Names of the weight files; `index` is None and `mapping` empty for a single file."""

    names: tuple[str, ...]
    index_name: str
    index: dict[str, Any] | None
    mapping: dict[str, str]

    @property
    def pickled(self) -> bool:
        """True when the weights are torch's zip files."""
        return self.index_name == PICKLE_INDEX


def never(_: dict[str, Any]) -> bool:
    """Return False: no pickles."""
    return False


def require_config(ref: ModelRef, files: list[str], read: Callable[[str], str]) -> None:
    """Refuse folders without a config.json, saying what they are."""
    if CONFIG in files:
        return
    if DELTA_PLAN in files:
        raise RequestError(
            f"{ref.name} is a delta written by dcsurgery, made for {_base_of(read)}, not a model",
            hint=f"name that model; dcsurgery.load({ref.name!r}) loads both together",
        )
    refuse_folder(ref.name, files, read)
    raise CheckpointNotFoundError(
        f"{ref.name} has no config.json", hint="name the folder that transformers would load"
    )


def require_weights(ref: ModelRef, files: list[str], read: Callable[[str], str]) -> None:
    """Refuse folders that hold no safetensors weights, or two sets of them."""
    single, index = SINGLE in files, INDEX in files
    if single and index:
        raise MalformedCheckpointError(
            f"{ref.name} has both {SINGLE} and an index of shards",
            hint="transformers would read the single file and leave the rest random: remove one",
        )
    if single or index:
        return
    refuse_folder(ref.name, files, read)
    raise CheckpointNotFoundError(
        f"{ref.name} has neither {SINGLE} nor {INDEX}",
        hint="fetch the model again, or name the folder that holds its weights",
    )


def _base_of(read: Callable[[str], str]) -> str:
    try:
        base = checks.parse_object(read(DELTA_PLAN), DELTA_PLAN).get("base")
    except CheckpointError:
        base = None
    name = base.get("id") if isinstance(base, dict) else None
    return repr(name[:200]) if isinstance(name, str) else "another model"


def find_layout(
    ref: ModelRef, files: list[str], read_json: Callable[[str], str], *, pickles: bool
) -> Layout:
    """Return where the weights are; with `pickles` also of folders that hold no safetensors.

    Raises CheckpointError of the fitting kind, also when the index names files that are not there.
    """
    has_pickles = PICKLE in files or PICKLE_INDEX in files
    stored = SINGLE in files or INDEX in files
    pickled = pickles and has_pickles and not stored
    parts = [name for name in files if name.startswith(PARTS) and "/" not in name]
    if pickles and parts and not (has_pickles or stored):
        refuse_parts(ref.name, parts, files, read_json)
    if not pickled:
        require_weights(ref, files, read_json)
    single, index_name = (PICKLE, PICKLE_INDEX) if pickled else (SINGLE, INDEX)
    if index_name not in files:
        return Layout((single,), index_name, None, {})
    index = checks.parse_object(read_json(index_name), index_name)
    suffix = ".bin" if pickled else ".safetensors"
    mapping = checks.read_weight_map(index, index_name, suffix)
    names = tuple(sorted(set(mapping.values())))
    for name in names:
        if name not in files:
            raise CheckpointNotFoundError(
                f"{ref.name} lacks {name}, which {index_name} names",
                hint="the download may be incomplete: fetch the model again",
            )
    return Layout(names, index_name, index, mapping)
