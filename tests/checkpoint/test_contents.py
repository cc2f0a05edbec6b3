"""Hostile folders are refused with the right error, a hint, and without touching anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dcsurgery.checkpoint.contents import INDEX, open_checkpoint
from dcsurgery.errors import (
    AnatomyError,
    CheckpointError,
    DcSurgeryError,
    MalformedCheckpointError,
    RequestError,
    UnsafeFormatError,
)
from tests.checkpoint.folders import shard, sharded, single, snapshot, write
from tests.checkpoint.hostile import (
    FILES,
    FIRST,
    NODES,
    PLAN,
    SECOND,
    THIRD,
    delta,
)


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
