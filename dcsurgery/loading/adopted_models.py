"""Load a model whose checkpoint is in no folder of its own, but presented or on the Hub.

transformers gets its config and its tensors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dcsurgery.checkpoint.checks import parse_object
from dcsurgery.checkpoint.contents import CONFIG, Checkpoint
from dcsurgery.modeling import register
from dcsurgery.originals.adopted import Adopted
from dcsurgery.surgery.processor_changes import processor_files

GENERATION = "generation_config.json"
# What safetensors calls them.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def load_config(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint's config as transformers reads it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    register()
    if _in_folder(checkpoint):
        return AutoConfig.from_pretrained(checkpoint.ref.folder)
    return CONFIG_MAPPING[checkpoint.config["model_type"]].from_dict(checkpoint.config)


def _in_folder(checkpoint: Checkpoint) -> bool:
    return not isinstance(checkpoint, Adopted) and checkpoint.ref.folder is not None


def from_checkpoint(
    source: Checkpoint | Path | str | None,
    only: Callable[[Any, Checkpoint], Iterable[str]] | None = None,
    **kwargs: Any,
) -> Any:
    """Return what from_pretrained returns for a folder, or for a checkpoint that is in none.

    transformers is given the tensors of a presented one in memory, mapped from their files; of one
    on the Hub those that `only(model, checkpoint)` names (all without it) by range requests.
    """
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForImageTextToText,
        GenerationConfig,
    )

    register()
    if not isinstance(source, Checkpoint) or _in_folder(source):
        folder = source.ref.folder if isinstance(source, Checkpoint) else source
        return AutoModelForImageTextToText.from_pretrained(folder, **kwargs)
    config = kwargs.pop("config", None) or load_config(source)
    model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    names: Iterable[str] = source.tensors
    if only is not None and not source.is_local:
        with torch.device("meta"):
            names = only(model_class(config), source)
    state = {name: _tensor(source, name) for name in names}
    found = model_class.from_pretrained(None, config=config, state_dict=state, **kwargs)
    model = found[0] if isinstance(found, tuple) else found
    if GENERATION in source.side_files and model.can_generate():
        stated = parse_object(source.read_file(GENERATION).decode(), GENERATION)
        model.generation_config = GenerationConfig.from_dict(stated)
    return found


def _tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """Return a tensor, mapped from the file it lies in where it lies in one."""
    entry = checkpoint.tensors[name]
    dtype = DTYPES[entry.dtype]
    span = checkpoint.span(name) if checkpoint.is_local else None
    if span is not None and span[1] % dtype.itemsize == 0 and entry.nbytes:
        path, start, length = span
        # Private: what is written to the tensor never reaches the file.
        whole = torch.from_file(str(path), shared=False, size=start + length, dtype=torch.uint8)
        return whole[start:].view(dtype).reshape(entry.shape)
    raw = bytearray(b"".join(checkpoint.tensor_chunks(name)))
    if not raw:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(raw, dtype=dtype).reshape(entry.shape)


@contextmanager
def small_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """Yield a folder that holds config.json and side files: a temporary one where there is none.

    Of a model on the Hub it holds the processor's files alone.
    """
    if _in_folder(checkpoint):
        yield checkpoint.ref.folder or Path()
        return
    names = checkpoint.side_files if checkpoint.is_local else processor_files(checkpoint)
    with tempfile.TemporaryDirectory(prefix="dcsurgery-") as made:
        folder = Path(made)
        (folder / CONFIG).write_text(checkpoint.config_text, encoding="utf-8")
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(checkpoint.read_file(name))
        yield folder
