"""Ways to damage a folder, one thing at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dcsurgery.checkpoint.contents import INDEX
from dcsurgery.checkpoint.headers import read_header
from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE

Damage = Callable[[Path], object]


def copy_of(folder: Path, target: Path) -> Path:
    """Copy a folder that must stay as it is."""
    shutil.copytree(folder, target)
    return target


def shard_of(folder: Path, tensor: str) -> Path:
    """The weight file that holds a tensor."""
    for path in sorted(folder.glob("*.safetensors")):
        if tensor in read_header(path).tensors:
            return path
    raise AssertionError(f"no file in {folder} holds {tensor}")


def flip(path: Path, at: int) -> None:
    """Change one bit of one byte; a negative position counts from the end."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def flip_tensor(name: str) -> Damage:
    """Change one bit in the middle of a tensor."""

    def damage(folder: Path) -> None:
        path = shard_of(folder, name)
        header = read_header(path)
        entry = header.tensors[name]
        flip(path, header.data_start + (entry.begin + entry.end) // 2)

    return damage


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Load, edit and save a weight file with safetensors itself."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(name: str, edit: Callable[[dict[str, Any]], object]) -> Damage:
    """Edit a JSON file in place."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        edit(values)
        (folder / name).write_text(json.dumps(values, indent=2))

    return damage


def edit_plan(edit: Callable[[dict[str, Any]], object]) -> Damage:
    """Edit the plan in place."""
    return edit_json(PLAN_FILE, edit)


def edit_delta(edit: Callable[[dict[str, Tensor]], object]) -> Damage:
    """Edit the delta's tensors."""
    return lambda folder: edit_tensors(folder / DELTA_FILE, edit)


def write(name: str, text: str) -> Damage:
    """Write a file."""
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Damage:
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def drop_tensor(name: str) -> Damage:
    """Remove a tensor from its file and from the index, totals right."""

    def damage(folder: Path) -> None:
        path = shard_of(folder, name)
        entry = read_header(path).tensors[name]
        edit_tensors(path, lambda tensors: tensors.pop(name))
        index = json.loads((folder / INDEX).read_text())
        del index["weight_map"][name]
        index["metadata"]["total_size"] -= entry.nbytes
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def move_tensor(name: str, target: str) -> Damage:
    """Move a tensor to another file, the index right."""

    def damage(folder: Path) -> None:
        path = shard_of(folder, name)
        value = load_file(path)[name]
        edit_tensors(path, lambda tensors: tensors.pop(name))
        edit_tensors(folder / target, lambda tensors: tensors.update({name: value}))
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][name] = target
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def copy_tensor(name: str, target: str) -> Damage:
    """Leave a second copy of a tensor in another file."""

    def damage(folder: Path) -> None:
        value = load_file(shard_of(folder, name))[name]
        edit_tensors(folder / target, lambda tensors: tensors.update({name: value}))

    return damage


def relabel(name: str, old: str, new: str) -> Damage:
    """Change a tensor's dtype in the header alone, its bytes kept."""

    def damage(folder: Path) -> None:
        path = shard_of(folder, name)
        raw = path.read_bytes()
        start = raw.index(f'"{name}"'.encode())
        at = raw.index(old.encode(), start)
        path.write_bytes(raw[:at] + new.encode() + raw[at + len(old) :])

    return damage
