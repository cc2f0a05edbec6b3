"""Tiny checkpoint folders made of hand-written bytes: no torch, no safetensors."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

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


LLAVA_CONFIG: dict[str, Any] = {
    **CONFIG,
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "text_config": {"model_type": "llama", "rms_norm_eps": 1e-05, "name": "Größe 雪 \U0001f600"},
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 16, "num_hidden_layers": 4,
        "image_size": 16, "patch_size": 4,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "big": 123456789012345678901234567890,
    "zero": -0.0,
    "limits": [0.0, float("inf")],
}  # fmt: skip
PROJECTOR = "multi_modal_projector."
WEIGHT = PROJECTOR + "linear_1.weight"
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "U8": 8}
Specs = list[tuple[str, str, tuple[int, ...]]]


def llava_specs(
    place: str = "last", dtype: str = "F32", extra: Specs | None = None, filler: int = 32
) -> Specs:
    """Name, dtype and shape of a tiny LLaVA's tensors; the projector at a place of choice."""
    blocks: Specs = [
        (f"vision_tower.vision_model.encoder.layers.{i}.w", dtype, (16, 3)) for i in range(4)
    ]
    text: Specs = [("language_model.model.embed.weight", dtype, (filler, 24)), *(extra or [])]
    projector: Specs = [
        (WEIGHT, dtype, (24, 16)), (PROJECTOR + "linear_1.bias", dtype, (24,)),
        (PROJECTOR + "linear_2.weight", dtype, (24, 24)),
        (PROJECTOR + "linear_2.bias", dtype, (24,)),
    ]  # fmt: skip
    if place == "first":
        return projector + blocks + text
    return blocks + projector + text if place == "middle" else blocks + text + projector


def typed_shard(specs: Specs, seed: int = 0, pad: int = 0) -> bytes:
    """A safetensors file of those tensors; values are seeded, finite and of moderate size."""
    draw = np.random.default_rng(seed)
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "by": "tests"}}
    data = bytearray()
    for name, dtype, shape in specs:
        values = draw.normal(size=math.prod(shape))
        if dtype == "BF16":
            raw = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        elif dtype == "U8":
            raw = draw.bytes(math.prod(shape))
        else:
            raw = values.astype(f"<f{BITS[dtype] // 8}").tobytes()
        begin, end = len(data), len(data) + len(raw)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        data += raw
    text = json.dumps(table, separators=(",", ":")).encode()
    return raw_file(text + b" " * (-len(text) % 8 + pad), bytes(data))


def llava(
    *, place: str = "last", dtype: str = "F32", shards: int = 1, extra: Specs | None = None,
    filler: int = 32,
) -> dict[str, bytes]:  # fmt: skip
    """The files of a tiny LLaVA of hand-made bytes, with side files and files to leave out."""
    specs = llava_specs(place, dtype, extra, filler)
    files = {
        "config.json": json.dumps(LLAVA_CONFIG).encode(),
        "tokenizer.json": b'{"a":  1}\r\n',
        "empty.txt": b"",
        "sub/notes.md": b"\xff raw",
        "pytorch_model.bin": b"left out",
        "stray.safetensors": b"left out",
    }
    if shards == 1:
        return files | {"model.safetensors": typed_shard(specs)}
    total, homes = 0, {}
    for index in range(shards):
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = specs[index * len(specs) // shards : (index + 1) * len(specs) // shards]
        files[name] = typed_shard(part, seed=index)
        homes.update({tensor: name for tensor, _, _ in part})
        total += sum(math.prod(shape) * BITS[kind] // 8 for _, kind, shape in part)
    count = sum(math.prod(shape) for _, _, shape in specs)
    index_json = {
        "metadata": {"z": "kept", "total_parameters": count, "total_size": total},
        "weight_map": dict(sorted(homes.items(), reverse=True)),
        "more": 1e-05,
    }
    return files | {"model.safetensors.index.json": json.dumps(index_json).encode()}


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


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder by safetensors itself; no name may be in two files."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            assert found.keys().isdisjoint(file.keys())
            found |= {name: file.get_tensor(name) for name in file.keys()}
    return found


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, dtype and shape included."""
    raw = [item.contiguous().view(-1).view(torch.uint8) for item in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def hub_cache(root: Path, files: dict[str, bytes], *, shared: bool) -> Path:
    """A snapshot whose names reach their bytes in one hop (blobs), or in two (shared blobs)."""
    model = root / "models--org--name"
    (model / "blobs").mkdir(parents=True)
    for number, (name, data) in enumerate(files.items()):
        digest = hashlib.sha256(data + bytes([number])).hexdigest()
        blob = model / "blobs" / digest
        if shared:
            store = root / "blobs" / digest[:2] / digest
            store.parent.mkdir(parents=True, exist_ok=True)
            store.write_bytes(data)
            store.chmod(0o444)
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            blob.write_bytes(data)
        target = model / "snapshots" / ("c" * 40) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(blob, target.parent))
    return model / "snapshots" / ("c" * 40)


def cache_state(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that could show that a cache was touched, links and folders included."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        state = path.lstat()
        what: Any = None
        if path.is_symlink():
            what = os.readlink(path)
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (state.st_ino, state.st_mode, state.st_nlink, state.st_mtime_ns, what)
    return found
