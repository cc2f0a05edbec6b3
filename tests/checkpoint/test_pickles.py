"""Torch's zip files: what torch reads, found without running anything."""

from __future__ import annotations

import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dcsurgery.checkpoint.headers import Header
from dcsurgery.checkpoint.pickles import open_reader, read_pickle
from dcsurgery.errors import CheckpointError, MalformedCheckpointError, UnsafeFormatError


def read(path: Path) -> Header:
    with open_reader(path) as reader:
        return read_pickle(reader, path.stat().st_size, path.name)


def tables() -> dict[str, Any]:
    torch.manual_seed(0)
    ordered: Any = collections.OrderedDict(a=torch.randn(3, 4).half(), b=torch.arange(5))
    ordered["view"] = torch.randn(4, 4).bfloat16()[1:3]
    ordered["tied"] = ordered["a"]
    ordered["one"] = torch.randn(4, 1).mT
    ordered["empty"] = torch.empty(0, 3)
    ordered["flag"] = torch.tensor(True)
    ordered._metadata = {"": {"version": 1}}
    return {
        "ordered": ordered,
        "plain": dict(ordered),
        "parameters": {"p": torch.nn.Parameter(torch.randn(2))},
        "module": torch.nn.Linear(3, 2).double().state_dict(),
        "mixed": {"t": torch.ones(2), "epoch": 3, "lr": 0.1, "note": None},
    }


@pytest.mark.parametrize("name", tables())
def test_every_tensor_is_found_where_torch_reads_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(tables()[name], path)
    wanted = torch.load(path, weights_only=True)
    wanted = {key: value for key, value in wanted.items() if isinstance(value, torch.Tensor)}
    found = read(path).tensors
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        entry = found[key]
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert path.read_bytes()[entry.begin : entry.end] == raw
        assert entry.shape == tuple(value.shape)


class Runs:
    """A pickle of it calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, Any]:
    return {
        "system": {"t": torch.zeros(2), "x": Runs(os.system, f"touch {marker}")},
        "eval": {"t": torch.zeros(2), "x": Runs(eval, f"open({str(marker)!r}, 'w')")},
        "getattr": {"t": torch.zeros(2), "x": Runs(getattr, "", "upper")},
        "a whole module": torch.nn.Linear(2, 2),
    }


@pytest.mark.parametrize(
    "name", ["system", "eval", "getattr", "a whole module", "an extension code"]
)
def test_a_pickle_that_calls_anything_is_refused_and_never_runs(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "pytorch_model.bin"
    if name == "an extension code":
        torch.save({"t": torch.zeros(2)}, tmp_path / "good.bin")
        rebuilt(tmp_path / "good.bin", path, {"data.pkl": b"\x80\x02\x82\x01."})
    else:
        torch.save(hostile(marker)[name], path)
    with pytest.raises(UnsafeFormatError, match=r"wants to call|makes objects"):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["legacy", "bare", "text", "empty"])
def test_a_file_that_is_no_archive_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    if kind == "legacy":
        torch.save({"t": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes({"bare": pickle.dumps({"t": 1}), "text": b"x" * 99, "empty": b""}[kind])
    with pytest.raises(UnsafeFormatError, match="without running it") as caught:
        read(path)
    assert "weights_only=True" in caught.value.hint


def rebuilt(source: Path, target: Path, changes: dict[str, bytes | None], **options: Any) -> Path:
    """Write an archive again with some members replaced, or left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            raw = changes.get(name.partition("/")[2], old.read(name))
            if raw is not None:
                new.writestr(name, raw)
    return target


BIG = b"\x80\x02}q\x00r\xff\xff\xff\x7f."
DAMAGES: dict[str, Any] = {
    "description missing": {"data.pkl": None},
    "description cut": {"data.pkl": b"\x80\x02}q\x00("},
    "a memo slot out of range": {"data.pkl": BIG},
    "no table": {"data.pkl": pickle.dumps([1], protocol=2)},
    "no tensors": {"data.pkl": pickle.dumps({"a": 1}, protocol=2)},
    "bytes missing": {"data/0": None},
    "bytes too few": {"data/0": b"\0" * 4},
    "big-endian": {"byteorder": b"big"},
}


@pytest.mark.parametrize("damage", [*DAMAGES, "compressed", "truncated"])
def test_a_broken_archive_is_refused(damage: str, tmp_path: Path) -> None:
    good, path = tmp_path / "good.bin", tmp_path / "pytorch_model.bin"
    torch.save({"t": torch.arange(4.0)}, good)
    if damage == "truncated":
        path.write_bytes(good.read_bytes()[:-30])
    elif damage == "compressed":
        rebuilt(good, path, {}, compression=zipfile.ZIP_DEFLATED)
    else:
        rebuilt(good, path, DAMAGES[damage])
    with pytest.raises(MalformedCheckpointError, match=r"pytorch_model\.bin"):
        read(path)
    assert read(good).tensors["t"].shape == (4,)


def test_tensors_that_are_not_stored_row_by_row_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"t": torch.randn(3, 4).mT}, path)
    with pytest.raises(CheckpointError, match="not stored row by row"):
        read(path)
