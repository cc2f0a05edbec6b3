"""Checkpoint folders that must be refused, each with the error it deserves."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from dcsurgery.checkpoint.contents import INDEX
from dcsurgery.errors import (
    CheckpointNotFoundError,
    DcSurgeryError,
    MalformedCheckpointError,
    RequestError,
    UnsafeFormatError,
)
from tests.checkpoint.folders import index_for, raw_file, shard, sharded, single

FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))


def changed_index(target: str) -> dict[str, bytes]:
    weight_map = {"m.t0.weight": FIRST, "m.t1.weight": SECOND, "m.t2.weight": target}
    return sharded() | {INDEX: index_for(weight_map)}


def with_index(value: object) -> dict[str, bytes]:
    return sharded() | {INDEX: json.dumps(value).encode()}


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


def delta(plan: bytes) -> dict[str, bytes]:
    return {"dense_connector/plan.json": plan, "dense_connector/model.safetensors": shard({})}


GOOD_MAP = {"m.t0.weight": FIRST, "m.t1.weight": SECOND, "m.t2.weight": THIRD}
PLAN = json.dumps({"base": {"id": "llava-hf/base"}}).encode()
NESTED = b'{"a":' + b"[" * 200_000
FILES: dict[str, tuple[dict[str, bytes], type[DcSurgeryError]]] = {
    "empty folder": ({}, CheckpointNotFoundError),
    "no config": (without(single(), "config.json"), CheckpointNotFoundError),
    "no weights": (without(single(), "model.safetensors"), CheckpointNotFoundError),
    "shards without index": (without(sharded(), INDEX), CheckpointNotFoundError),
    "gguf only": ({"config.json": b"{}", "m.gguf": b"x"}, CheckpointNotFoundError),
    "pickle only": ({"config.json": b"{}", "pytorch_model.bin": b"\x80"}, UnsafeFormatError),
    "pickle shards": (
        {"config.json": b"{}", "pytorch_model-00001-of-00002.bin": b"\x80"}, UnsafeFormatError),
    "other pickle": ({"config.json": b"{}", "mm_projector.pth": b"\x80"}, UnsafeFormatError),
    "config is a list": (single() | {"config.json": b"[1]"}, MalformedCheckpointError),
    "config cut off": (single() | {"config.json": b'{"a": 1'}, MalformedCheckpointError),
    "config not UTF-8": (single() | {"config.json": b'{"a":"\xff"}'}, MalformedCheckpointError),
    "config with a byte order mark": (
        single() | {"config.json": b"\xef\xbb\xbf{}"}, MalformedCheckpointError),
    "config duplicate": (
        single() | {"config.json": b'{"x":{"a":1,"a":2}}'}, MalformedCheckpointError),
    "config nested": (single() | {"config.json": NESTED}, MalformedCheckpointError),
    "config digits": (
        single() | {"config.json": b'{"a":' + b"9" * 9999 + b"}"}, MalformedCheckpointError),
    "config huge": (single() | {"config.json": b" " * (11 << 20)}, MalformedCheckpointError),
    "single and index": (sharded() | single(), MalformedCheckpointError),
    "index is a list": (with_index([]), MalformedCheckpointError),
    "index without metadata": (with_index({"weight_map": GOOD_MAP}), MalformedCheckpointError),
    "index without map": (with_index({"metadata": {}}), MalformedCheckpointError),
    "index map is a list": (
        with_index({"metadata": {}, "weight_map": []}), MalformedCheckpointError),
    "index duplicate": (
        sharded() | {INDEX: b'{"metadata":{},"metadata":{}}'}, MalformedCheckpointError),
    "index value is a number": (
        with_index({"metadata": {}, "weight_map": {"a": 1}}), UnsafeFormatError),
    "index parent": (changed_index("../outside.safetensors"), UnsafeFormatError),
    "index hidden parent": (changed_index("a/../../x.safetensors"), UnsafeFormatError),
    "index absolute": (changed_index("/etc/x.safetensors"), UnsafeFormatError),
    "index backslash": (changed_index("..\\x.safetensors"), UnsafeFormatError),
    "index NUL": (changed_index("x\0.safetensors"), UnsafeFormatError),
    "index dot": (changed_index("./" + THIRD), UnsafeFormatError),
    "index pickle": (changed_index("pytorch_model.bin"), UnsafeFormatError),
    "index empty name": (changed_index(""), UnsafeFormatError),
    "index missing shard": (changed_index("model-9.safetensors"), CheckpointNotFoundError),
    "index wrong shard": (
        sharded() | {INDEX: index_for({**GOOD_MAP, "m.t2.weight": FIRST, "m.t0.weight": THIRD})},
        MalformedCheckpointError),
    "index ghost": (
        sharded() | {INDEX: index_for({**GOOD_MAP, "ghost": FIRST})}, MalformedCheckpointError),
    "tensor not in the index": (
        sharded() | {FIRST: shard({"m.t0.weight": (1,), "more": (1,)})}, MalformedCheckpointError),
    "tensor in two shards": (
        sharded() | {THIRD: shard({"m.t1.weight": (1,), "m.t2.weight": (1,)})},
        MalformedCheckpointError),
    "shard cut": (sharded() | {SECOND: sharded()[SECOND][:-10]}, MalformedCheckpointError),
    "shard longer": (sharded() | {SECOND: sharded()[SECOND] + b"x"}, MalformedCheckpointError),
    "shard empty": (sharded() | {SECOND: b""}, MalformedCheckpointError),
    "shard is a pointer file": (
        sharded() | {SECOND: b"version https://git-lfs.github.com/spec/v1\n"},
        MalformedCheckpointError),
    "header nested": (
        single() | {"model.safetensors": raw_file(NESTED)}, MalformedCheckpointError),
    "delta": (delta(PLAN), RequestError),
    "delta with a broken plan": (delta(b"{"), RequestError),
    "delta with a strange plan": (delta(b'{"base":[1]}'), RequestError),
}  # fmt: skip


def link_outside(folder: Path, name: str) -> None:
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(shard({"m.t2.weight": (1,)}))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)


def listen(path: Path) -> None:
    """Leave a socket behind (its path may be at most about 100 bytes long, so bind from inside)."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


def replace(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)


NODES: dict[str, tuple[Callable[[Path], object], type[DcSurgeryError]]] = {
    "shard links outside": (lambda f: link_outside(f, THIRD), UnsafeFormatError),
    "side file links outside": (lambda f: link_outside(f, "LICENSE"), UnsafeFormatError),
    "config links outside": (lambda f: link_outside(f, "config.json"), UnsafeFormatError),
    "folder links outside": (lambda f: (f / "code").symlink_to("/"), UnsafeFormatError),
    "folder links to itself": (lambda f: (f / "again").symlink_to("."), UnsafeFormatError),
    "dangling": (lambda f: (f / "x.json").symlink_to("nowhere"), CheckpointNotFoundError),
    "link loop": (lambda f: (f / "x.json").symlink_to("x.json"), CheckpointNotFoundError),
    "same shard twice": (
        lambda f: replace(f, THIRD, lambda p: p.symlink_to(FIRST)), MalformedCheckpointError),
    "config is a folder": (
        lambda f: replace(f, "config.json", Path.mkdir), CheckpointNotFoundError),
    "shard is a folder": (lambda f: replace(f, THIRD, Path.mkdir), CheckpointNotFoundError),
    "shard is a FIFO": (lambda f: replace(f, THIRD, os.mkfifo), UnsafeFormatError),
    "config is a FIFO": (lambda f: replace(f, "config.json", os.mkfifo), UnsafeFormatError),
    "side file is a socket": (lambda f: listen(f / "s"), UnsafeFormatError),
    "name is not UTF-8": (
        lambda f: (f / os.fsdecode(b"\xff.json")).write_text("{}"), MalformedCheckpointError),
    "name with escapes": (
        lambda f: (f / "\x1b[2J.json").write_text("{}"), MalformedCheckpointError),
}  # fmt: skip
