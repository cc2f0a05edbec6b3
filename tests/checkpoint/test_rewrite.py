"""Rewritten checkpoints, read back by safetensors' own loader."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dcsurgery.checkpoint import copying, rewrite
from dcsurgery.checkpoint.checks import render_object
from dcsurgery.checkpoint.compose import compose_file
from dcsurgery.checkpoint.contents import CONFIG, INDEX, open_checkpoint
from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.checkpoint.headers import read_header
from dcsurgery.checkpoint.rewrite import (
    NewTensor,
    estimate_bytes,
    write_checkpoint,
    write_tensors,
)
from dcsurgery.errors import CheckpointError, MalformedCheckpointError
from tests.checkpoint.folders import (
    LLAVA_CONFIG,
    PROJECTOR,
    WEIGHT,
    Specs,
    cache_state,
    hub_cache,
    llava,
    llava_specs,
    load,
    raw_file,
    same,
    shard,
    snapshot,
    typed_shard,
    write,
)

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def new(name: str, dtype: str, shape: tuple[int, ...], seed: int = 5) -> NewTensor:
    """A tensor of seeded bytes that come in uneven chunks."""
    item = NewTensor(name, dtype, shape, lambda: [])
    raw = torch.randint(
        0, 256, (item.nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    data = raw.numpy().tobytes()
    item.chunks = lambda: [data[:7], b"", data[7:]]
    return item


def content(item: NewTensor) -> torch.Tensor:
    raw = bytearray(b"".join(item.chunks()))
    if not raw:
        return torch.empty(item.shape, dtype=DTYPES[item.dtype])
    return torch.frombuffer(raw, dtype=DTYPES[item.dtype]).reshape(item.shape)


def convert(
    base: Path, out: Path, replacements: dict[str, NewTensor], **options: Any
) -> tuple[Transfer, ...]:
    out.mkdir()
    return write_checkpoint(open_checkpoint(base), out, replacements, "{}", **options)


def check(base: Path, out: Path, replacements: dict[str, NewTensor]) -> None:
    before, after = load(base), load(out)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        wanted = content(replacements[name]) if name in replacements else before[name]
        assert same(tensor, wanted), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("shards", [1, 3])
def test_only_the_named_tensors_change(place: str, shards: int, dtype: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base", llava(place=place, shards=shards, dtype=dtype))
    before = snapshot(base)
    replacements = {
        WEIGHT: new(WEIGHT, dtype, (24, 80)),
        PROJECTOR + "linear_2.bias": new(PROJECTOR + "linear_2.bias", dtype, (24,), 9),
    }
    done = convert(base, tmp_path / "out", replacements)
    check(base, tmp_path / "out", replacements)
    assert snapshot(base) == before
    for item in replacements.values():
        assert item.sha256 == hashlib.sha256(b"".join(item.chunks())).hexdigest()
    touched = {open_checkpoint(base).file_of(name).name for name in replacements}
    assert {item.file for item in done if item.mode == "rewrite"} == touched
    for path in (tmp_path / "out").glob("model*.safetensors"):
        old, now = read_header(base / path.name), read_header(path)
        assert now.metadata == old.metadata == {"format": "pt", "by": "tests"}
        assert list(now.tensors) == list(old.tensors)
        moved = Counter[int]()
        for name, entry in old.tensors.items():
            shift = now.data_start + now.tensors[name].begin - old.data_start - entry.begin
            moved[shift % 4096] += entry.nbytes if name not in replacements else 0
        assert moved[0] == max(moved.values())
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
        if path.name not in touched:
            assert path.read_bytes() == (base / path.name).read_bytes()


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_side_files_are_the_same_bytes_and_foreign_weights_stay(tmp_path: Path) -> None:
    files = llava(shards=2)
    base = write(tmp_path / "base", files)
    convert(base, tmp_path / "out", {WEIGHT: new(WEIGHT, "F32", (24, 80))})
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert names == files.keys() - {"pytorch_model.bin", "stray.safetensors"}
    for name in ("tokenizer.json", "empty.txt", "sub/notes.md"):
        assert (tmp_path / "out" / name).read_bytes() == files[name]


def test_the_index_keeps_order_and_counts(tmp_path: Path) -> None:
    files = llava(shards=3)
    base = write(tmp_path / "base", files)
    convert(base, tmp_path / "out", {WEIGHT: new(WEIGHT, "F32", (24, 80))})
    text = (tmp_path / "out" / INDEX).read_text()
    old, found = json.loads(files[INDEX]), json.loads(text)
    tensors = load(tmp_path / "out").values()
    assert found["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors)
    assert found["metadata"]["total_parameters"] == sum(t.numel() for t in tensors)
    assert found["metadata"]["z"] == "kept"
    assert list(found) == list(old)
    assert list(found["metadata"]) == list(old["metadata"])
    assert list(found["weight_map"].items()) == list(old["weight_map"].items())
    assert "1e-05" in text


def test_a_wrong_total_is_put_right_and_a_missing_count_stays_missing(tmp_path: Path) -> None:
    files = llava(shards=2)
    index = json.loads(files[INDEX]) | {"metadata": {"total_size": 7}}
    base = write(tmp_path / "base", files | {INDEX: json.dumps(index).encode()})
    convert(base, tmp_path / "out", {WEIGHT: new(WEIGHT, "F32", (24, 16))})
    tensors = load(base).values()
    found = json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]
    assert found == {"total_size": sum(t.numel() * t.element_size() for t in tensors)}


def rewrite_file(source: Path, target: Path, replacements: dict[str, NewTensor]) -> None:
    """Write a weight file with some tensors replaced."""
    files = {CONFIG: json.dumps(LLAVA_CONFIG).encode(), "model.safetensors": source.read_bytes()}
    checkpoint = open_checkpoint(write(source.with_name("of-one-file"), files))
    compose_file(checkpoint, checkpoint.weights[0].header, target, replacements)


ODD: Specs = [
    ("half", "F16", (3,)), ("empty", "F32", (0, 4)), ("bytes", "U8", (5,)),
    ("empty.half", "F16", (2, 0)), ("scalar", "F64", ()),
]  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (0, 7), (16, 2)])
@pytest.mark.parametrize("at", range(4))
def test_tensors_stay_aligned_among_mixed_dtypes(
    at: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    # Aligned before, whatever the order; growing "x" by an odd count of halves would shift "wide".
    specs: Specs = [("wide", "F64", (3,)), ("single", "F32", (2,)), ("byte", "U8", (4,))]
    specs.insert(at, ("x", "F16", (2, 2)))
    source = tmp_path / "source"
    source.write_bytes(typed_shard(specs))
    item = new("x", "F16", shape)
    rewrite_file(source, tmp_path / "model.safetensors", {"x": item})
    header = read_header(tmp_path / "model.safetensors")
    assert header.data_start % 8 == 0
    for name, entry in header.tensors.items():
        width = {"wide": 8, "single": 4, "x": 2}.get(name, 1)
        assert (header.data_start + entry.begin) % width == 0, name
    found = load(tmp_path)
    with safe_open(source, "pt") as file:
        for name in ("wide", "single", "byte"):
            assert same(found[name], file.get_tensor(name))
    assert same(found["x"], content(item))


def test_order_is_kept_where_alignment_allows(tmp_path: Path) -> None:
    specs: Specs = [("x", "F16", (2, 2)), ("wide", "F64", (3,))]
    (tmp_path / "a").write_bytes(typed_shard(specs))
    item = new("x", "F16", (4, 2))
    rewrite_file(tmp_path / "a", tmp_path / "b", {"x": item})
    assert list(read_header(tmp_path / "b").tensors) == ["x", "wide"]


@pytest.mark.parametrize("changed", [(), ("half",), ("empty",), ("scalar", "bytes")])
def test_empty_and_scalar_tensors_survive(changed: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = tmp_path / "base" / "model.safetensors"
    base.write_bytes(typed_shard(ODD))
    with safe_open(base, "pt") as file:
        before = {name: file.get_tensor(name) for name in file.keys()}
    shapes = {name: (dtype, shape) for name, dtype, shape in ODD}
    own = {name: new(name, "U8" if name == "bytes" else shapes[name][0], shapes[name][1])
           for name in changed}  # fmt: skip
    rewrite_file(base, tmp_path / "model.safetensors", own)
    after = load(tmp_path)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name in own:
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert raw == b"".join(own[name].chunks())
        else:
            assert same(tensor, before[name]), name


@pytest.mark.parametrize("pad", [0, 1, 3, 8, 4096])
def test_headers_of_odd_length_become_multiples_of_eight(pad: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(typed_shard(llava_specs(), pad=pad))
    old = read_header(tmp_path / "a")
    rewrite_file(tmp_path / "a", tmp_path / "model.safetensors",
                  {WEIGHT: new(WEIGHT, "F32", (24, 32))})  # fmt: skip
    now = read_header(tmp_path / "model.safetensors")
    assert now.data_start % 8 == 0
    if pad % 8 == 0:
        assert (now.data_start - old.data_start) % 4096 == 0
    assert load(tmp_path).keys() == old.tensors.keys()


METADATA = ["", '"__metadata__":{},', '"__metadata__":null,',
            '"__metadata__":{"z":"1","a":"\\u96ea \\"q\\"\\n"},']  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_is_verbatim(metadata: str, tmp_path: Path) -> None:
    table = f'{{{metadata}"x":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}'
    (tmp_path / "a").write_bytes(raw_file(table, b"ab"))
    rewrite_file(tmp_path / "a", tmp_path / "b", {})
    kept = []
    for name in "ab":
        with safe_open(tmp_path / name, "pt") as file:
            kept.append(list((file.metadata() or {}).items()))
    # safetensors gives metadata in no order: compare the text's order by our own reader.
    assert sorted(kept[0]) == sorted(kept[1])
    headers = [read_header(tmp_path / name).metadata or {} for name in "ab"]
    assert list(headers[0].items()) == list(headers[1].items())


def test_a_new_file_is_ordered_by_width(tmp_path: Path) -> None:
    items = [new("b", "BF16", (3,)), new("a", "F16", (5,)), new("z", "F64", (1, 2)),
             new("m", "F32", (0, 3))]  # fmt: skip
    moved = write_tensors(tmp_path / "model.safetensors", items, {"format": "pt"})
    assert moved.written == (tmp_path / "model.safetensors").stat().st_size
    header = read_header(tmp_path / "model.safetensors")
    assert list(header.tensors) == ["z", "m", "a", "b"]
    assert header.data_start % 8 == 0
    found = load(tmp_path)
    assert all(same(found[item.name], content(item)) for item in items)


def test_a_generator_that_miscounts_is_not_written(tmp_path: Path) -> None:
    item = NewTensor("x", "U8", (4,), lambda: [b"123"])
    with pytest.raises(ValueError, match="3 bytes were made, 4"):
        write_tensors(tmp_path / "x", [item], {})


@pytest.mark.parametrize("shards", [1, 3])
def test_unchanged_shards_are_linked_only_when_asked(shards: int, tmp_path: Path) -> None:
    base = write(tmp_path / "base", llava(shards=shards))
    before = snapshot(base)
    for link in (False, True):
        out = tmp_path / f"out{link}"
        done = convert(base, out, {WEIGHT: new(WEIGHT, "F32", (24, 80))}, link=link)
        touched = open_checkpoint(base).file_of(WEIGHT).name
        for item in done:
            shared = link and item.file.endswith(".safetensors") and item.file != touched
            assert (item.mode == "hardlink") is shared
            source = base / item.file
            assert (out / item.file).samefile(source) is shared
    assert snapshot(base) == before


def cache_folder(snapshot: Path, tmp_path: Path, how: str) -> Path:
    if how == "snapshot":
        return snapshot
    alias = tmp_path / "alias"
    alias.symlink_to(snapshot)
    return alias


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("how", ["snapshot", "alias"])
def test_a_hub_cache_is_never_linked_nor_touched(how: str, shared: bool, tmp_path: Path) -> None:
    files = {k: v for k, v in llava(shards=3).items() if k != "stray.safetensors"}
    cache = tmp_path / "hub"
    base = cache_folder(hub_cache(cache, files, shared=shared), tmp_path, how)
    before = cache_state(cache)
    replacements = {WEIGHT: new(WEIGHT, "F32", (24, 80))}
    done = convert(base, tmp_path / "out", replacements, link=True)
    check(base, tmp_path / "out", replacements)
    assert "hardlink" not in {item.mode for item in done}
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink()
        if path.is_file():
            assert path.stat().st_nlink == 1
            assert path.stat().st_mode & 0o200
            path.write_bytes(b"training wrote here")
    assert cache_state(cache) == before


def touch(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(0, 12345))


CHANGES: dict[str, Callable[[Path], object]] = {
    "shard rewritten": lambda base: touch(base / "model-00002-of-00003.safetensors"),
    "shard replaced": lambda base: (base / "new").write_bytes(b"") or os.replace(
        base / "new", base / "model-00001-of-00003.safetensors"),
    "shard cut": lambda base: os.truncate(base / "model-00003-of-00003.safetensors", 50),
    "shard removed": lambda base: (base / "model-00001-of-00003.safetensors").unlink(),
    "side file grows": lambda base: (base / "tokenizer.json").write_bytes(b"longer than before"),
    "config edited": lambda base: touch(base / "config.json"),
    "index edited": lambda base: touch(base / INDEX),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("moment", ["before", "first file", "last file"])
def test_a_source_that_changes_underway_is_an_error(
    moment: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(tmp_path / "base", llava(shards=3, place="middle"))
    checkpoint = open_checkpoint(base)
    (tmp_path / "out").mkdir()
    if moment == "before":
        CHANGES[name](base)
    else:
        strike(monkeypatch, base, CHANGES[name], at=1 if moment == "first file" else 6)
    with pytest.raises(MalformedCheckpointError) as caught:
        write_checkpoint(checkpoint, tmp_path / "out", {WEIGHT: new(WEIGHT, "F32", (24, 80))}, "{}")
    assert "changed while" in caught.value.message or "shorter" in caught.value.message
    assert not (tmp_path / "out" / "config.json").exists()


def strike(
    monkeypatch: pytest.MonkeyPatch, base: Path, change: Callable[[Path], object], at: int
) -> None:
    """Change the source right before the `at`-th target file is created."""
    real, count = copying.create, 0

    def create(target: Path) -> int:
        nonlocal count
        count += 1
        if count == at:
            change(base)
        return real(target)

    monkeypatch.setattr(copying, "create", create)


def test_the_estimate_is_an_upper_bound_and_knows_links(tmp_path: Path) -> None:
    base = write(tmp_path / "base", llava(shards=3, filler=4000))
    checkpoint = open_checkpoint(base)
    replacements = {WEIGHT: new(WEIGHT, "F32", (24, 80))}
    for link in (False, True):
        out = tmp_path / f"out{link}"
        done = convert(base, out, replacements, link=link)
        written = sum(item.written for item in done if item.file not in (INDEX, "config.json"))
        bound = estimate_bytes(checkpoint, replacements, linked=link)
        assert written <= bound <= written + 40_000


def test_a_full_disk_is_one_clean_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write(tmp_path / "base", llava())

    def full(*_: Any) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(rewrite.copying, "write_all", full)
    with pytest.raises(CheckpointError, match="no room left while writing") as caught:
        convert(base, tmp_path / "out", {WEIGHT: new(WEIGHT, "F32", (24, 80))})
    assert "free some space" in caught.value.hint


def test_json_too_deep_to_write_is_a_clean_error() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(MalformedCheckpointError, match="x is nested too deeply"):
        render_object({"a": deep}, "x")


def test_hand_made_files_are_sound(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", llava(shards=3, dtype="BF16"))
    assert len(load(folder)) == len(llava_specs())
    assert json.loads((folder / "config.json").read_text()) == LLAVA_CONFIG
    assert shard({"a": (1,)})
