"""Tiny checkpoint folders made of hand-written bytes: no torch, no safetensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}


def shard(tensors: Mapping[str, tuple[int, ...]], **metadata: str) -> bytes:
    """A safetensors file of F32 tensors whose bytes count upwards."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, shape in tensors.items():
        size = 4
        for dim in shape:
            size *= dim
        table[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return raw_file(json.dumps(table), bytes(i % 251 for i in range(at)))


def raw_file(header: str | bytes, data: bytes = b"") -> bytes:
    """A file with any header text."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def index_for(weight_map: Mapping[str, str]) -> bytes:
    """An index file."""
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": dict(weight_map)}).encode()


def sharded() -> dict[str, bytes]:
    """The files of a sound checkpoint in three shards, `t0.weight` to `t2.weight`."""
    names = [f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)]
    files = {name: shard({f"m.t{i}.weight": (64, 32)}) for i, name in enumerate(names)}
    files["model.safetensors.index.json"] = index_for(
        {f"m.t{i}.weight": name for i, name in enumerate(names)}
    )
    files["config.json"] = json.dumps(CONFIG).encode()
    files["tokenizer.json"] = b"{}"
    files["sub/extra.txt"] = b"kept"
    return files


def single() -> dict[str, bytes]:
    """The files of a sound checkpoint in one file."""
    return {
        "model.safetensors": shard({"a.weight": (2, 3), "b.weight": (4,)}),
        "config.json": json.dumps(CONFIG).encode(),
    }


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What must not change: size, modification time and bytes of every regular file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            state = path.lstat()
            found[str(path)] = (state.st_size, state.st_mtime_ns, path.read_bytes())
    return found
