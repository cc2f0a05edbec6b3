"""Hostile folders are refused with the right error, a hint, and without touching anything."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dcsurgery.checkpoint.contents import INDEX, open_checkpoint
from dcsurgery.errors import (
    AnatomyError,
    CheckpointError,
    CheckpointNotFoundError,
    DcSurgeryError,
    MalformedCheckpointError,
    RequestError,
    UnsafeFormatError,
)
from tests.checkpoint.folders import index_for, raw_file, shard, sharded, single, snapshot, write

FIRST, SECOND, THIRD = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))


def test_a_sound_sharded_folder_is_read_by_header(tmp_path: Path) -> None:
    files = sharded() | {
        "pytorch_model.bin": b"x", "stray.safetensors": b"not even a header",
        "consolidated.00.pth": b"x", "model.gguf": b"x", ".git/config": b"x",
        ".cache/x": b"x",
    }  # fmt: skip
    write(tmp_path, files)
    opened = open_checkpoint(tmp_path)
    assert [item.name for item in opened.weights] == [FIRST, SECOND, THIRD]
    assert [item.size for item in opened.weights] == [len(files[n]) for n in (FIRST, SECOND, THIRD)]
    assert opened.side_files == ("sub/extra.txt", "tokenizer.json")
    assert set(opened.left_out) == {
        "pytorch_model.bin", "stray.safetensors", "consolidated.00.pth", "model.gguf",
    }  # fmt: skip
    assert opened.file_of("m.t1.weight").name == SECOND
    assert opened.read_tensor("m.t1.weight") == bytes(i % 251 for i in range(64 * 32 * 4))
    assert opened.path(FIRST).samefile(tmp_path / FIRST)
    assert set(opened.stamp()) == {"config.json", INDEX, FIRST, SECOND, THIRD, *opened.side_files}
    assert not opened.ref.in_cache
    assert opened.config_text.encode() == files["config.json"]


def test_find_wants_exactly_one_dotted_suffix(tmp_path: Path) -> None:
    tensors = {"x.proj.weight": (1,), "y.proj.weight": (1,), "z.subproj.weight": (1,), "top": (1,)}
    opened = open_checkpoint(write(tmp_path, single() | {"model.safetensors": shard(tensors)}))
    assert opened.find("subproj.weight") == "z.subproj.weight"
    assert opened.find("top") == "top"
    for suffix, count in (("proj.weight", "2 tensors"), ("roj.weight", "no tensor")):
        with pytest.raises(AnatomyError, match=count):
            opened.find(suffix)


def test_a_tensor_that_vanishes_is_a_clean_error(tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path, single()))
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(MalformedCheckpointError):
        opened.read_tensor("b.weight")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MalformedCheckpointError):
        opened.read_tensor("b.weight")
    with pytest.raises(MalformedCheckpointError):
        opened.stamp()


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


def check_refused(folder: Path, kind: type[DcSurgeryError]) -> DcSurgeryError:
    """Opening raises exactly this error, with a hint, and changes nothing."""
    before = snapshot(folder)
    with pytest.raises(DcSurgeryError) as caught:
        open_checkpoint(folder, weights=True)
    assert type(caught.value) is kind, caught.value
    assert len(caught.value.hint) > 10
    assert "Traceback" not in caught.value.message
    assert len(caught.value.message) < 1000
    assert snapshot(folder) == before
    return caught.value


@pytest.mark.parametrize("name", FILES)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    files, kind = FILES[name]
    check_refused(write(tmp_path / "model", files), kind)


def test_a_delta_names_its_base(tmp_path: Path) -> None:
    error = check_refused(write(tmp_path, delta(PLAN)), RequestError)
    assert "llava-hf/base" in error.message


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


@pytest.mark.parametrize("name", NODES)
def test_hostile_nodes(name: str, tmp_path: Path) -> None:
    make, kind = NODES[name]
    folder = write(tmp_path / "model", sharded())
    make(folder)
    check_refused(folder, kind)


@pytest.mark.parametrize("name", ["tokenizer.json", FIRST, "config.json"])
def test_unreadable_files_are_clean_errors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root reads a file of any mode, so the answer of the system is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name)
    check_refused(write(tmp_path, sharded()), MalformedCheckpointError)


def test_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    folder = write(tmp_path, sharded())
    (folder / "real").mkdir()
    (folder / FIRST).rename(folder / "real" / "first.safetensors")
    (folder / FIRST).symlink_to("real/first.safetensors")
    assert open_checkpoint(folder).left_out == ("real/first.safetensors",)


def cache_snapshot(root: Path, *, shared: bool = False) -> Path:
    """A Hub cache as huggingface_hub lays it out: snapshot -> blob (-> shared blob)."""
    model = root / "models--org--name"
    target = model / "snapshots" / ("c" * 40)
    target.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, (name, data) in enumerate(single().items()):
        digest = f"{number:064x}"
        blob = model / "blobs" / digest
        if shared:
            store = root / "blobs" / digest[:2] / digest
            store.parent.mkdir(parents=True, exist_ok=True)
            store.write_bytes(data)
            blob.symlink_to(os.path.relpath(store, blob.parent))
        else:
            blob.write_bytes(data)
        (target / name).symlink_to(f"../../blobs/{digest}")
    return target


@pytest.mark.parametrize("shared", [False, True])
def test_cache_snapshots_open_and_are_known_as_such(tmp_path: Path, shared: bool) -> None:
    opened = open_checkpoint(cache_snapshot(tmp_path / "hub", shared=shared))
    assert opened.ref.in_cache
    assert opened.ref.commit == "c" * 40
    alias = tmp_path / "alias"
    alias.symlink_to(opened.ref.folder or "")
    assert open_checkpoint(alias).ref.in_cache


def test_a_fake_cache_gives_no_way_out(tmp_path: Path) -> None:
    folder = cache_snapshot(tmp_path / "hub")
    (tmp_path / "hub" / "secret").write_text("x")
    (folder / "notes.txt").symlink_to("../../../secret")
    check_refused(folder, UnsafeFormatError)


def test_errors_are_checkpoint_errors() -> None:
    assert all(issubclass(kind, CheckpointError | RequestError) for _, kind in FILES.values())
