"""Every way of moving bytes gives the same bytes; sources are never touched."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dcsurgery.checkpoint import copying
from dcsurgery.checkpoint.copying import plan_clone, transfer_file
from dcsurgery.errors import CheckpointError, MalformedCheckpointError
from tests.checkpoint.folders import snapshot

DATA = os.urandom(70_001)
WAYS = ("copy_file_range", "sendfile", "read_write")


def refuse(code: int) -> Any:
    def call(*_: Any, **__: Any) -> NoReturn:
        raise OSError(code, os.strerror(code))

    return call


def only(way: str, monkeypatch: pytest.MonkeyPatch, code: int = errno.EXDEV) -> list[str]:
    """Let one way work; return the list in which the ways that were tried are noted."""
    tried: list[str] = []
    for name in WAYS[: WAYS.index(way)]:
        monkeypatch.setattr(os, name, refuse(code))
    for name in WAYS:
        real = getattr(copying, "_by_" + name)

        def noted(*args: int, real: Any = real, name: str = name) -> int:
            tried.append(name)
            return int(real(*args))

        monkeypatch.setattr(copying, "_by_" + name, noted)
    return tried


def no_reflink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuse(errno.EOPNOTSUPP))


def move(tmp_path: Path, start: int, length: int, to: int) -> bytes:
    """Move a range through move_range and return the target's bytes from `to`."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA)
    before = snapshot(tmp_path)
    reading, writing = os.open(source, os.O_RDONLY), copying.create(target)
    try:
        copying.move_range(reading, writing, start, length, to)
    finally:
        os.close(reading)
        os.close(writing)
    assert {k: v for k, v in snapshot(tmp_path).items() if k != str(target)} == before
    return target.read_bytes()[to:]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_each_way_moves_the_same_bytes(
    way: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflink(monkeypatch)
    monkeypatch.setattr(copying, "STEP", 10_000)
    tried = only(way, monkeypatch, code)
    assert move(tmp_path, 123, 60_000, 4097) == DATA[123:60_123]
    assert tried[-1] == way
    assert set(tried) == set(WAYS[: WAYS.index(way) + 1])


def test_a_way_that_fails_midway_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflink(monkeypatch)
    monkeypatch.setattr(copying, "STEP", 10_000)
    real, calls = copying._by_copy_file_range, 0

    def breaks(*args: int) -> int:
        nonlocal calls
        calls += 1
        return real(*args) if calls < 3 else refuse(errno.EXDEV)()

    monkeypatch.setattr(copying, "_by_copy_file_range", breaks)
    assert move(tmp_path, 5, 65_000, 0) == DATA[5:65_005]


def test_zero_from_the_kernel_is_not_taken_for_a_short_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some file systems answer copy_file_range with 0 instead of an error.
    no_reflink(monkeypatch)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    assert move(tmp_path, 0, 50_000, 0) == DATA[:50_000]


@pytest.mark.parametrize("way", WAYS)
def test_a_source_that_ends_early_is_an_error(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflink(monkeypatch)
    only(way, monkeypatch)
    with pytest.raises(MalformedCheckpointError, match="shorter"):
        move(tmp_path, 0, len(DATA) + 1, 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_not_answered_by_another_way(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflink(monkeypatch)
    tried = only(way, monkeypatch)
    monkeypatch.setattr(os, "write" if way == "read_write" else way, refuse(errno.ENOSPC))
    (tmp_path / "a").write_bytes(DATA)
    with pytest.raises(CheckpointError, match="no room left"):
        transfer_file(tmp_path / "a", tmp_path / "b")
    assert tried[-1] == way


@pytest.mark.parametrize(
    ("start", "length", "to", "expected"),
    [(0, 4096, 0, (0, 4096)), (100, 9000, 100, (3996, 4096)), (100, 9000, 4196, (3996, 4096)),
     (100, 9000, 101, (0, 0)), (4096, 4095, 0, (0, 0)), (10, 5, 10, (5, 0)),
     (8192, 0, 4096, (0, 0)), (1, 4095, 4097, (4095, 0)), (1, 8191, 1, (4095, 4096))],
)  # fmt: skip
def test_what_can_share_blocks(start: int, length: int, to: int, expected: tuple[int, int]) -> None:
    head, interior = plan_clone(start, length, to)
    assert (head, interior) == expected
    if interior:
        assert (start + head) % 4096 == (to + head) % 4096 == interior % 4096 == 0
    assert head + interior <= length


class FakeReflink:
    """FICLONE and FICLONERANGE as XFS answers them, made of pread and pwrite."""

    def __init__(self) -> None:
        self.cloned = 0

    def __call__(self, target: int, request: int, argument: Any) -> int:
        if request == copying.FICLONE:
            source, start, length, to = argument, 0, os.fstat(argument).st_size, 0
        else:
            assert request == copying.FICLONERANGE
            source, start, length, to = struct.unpack("=qQQQ", argument)
            if start % 4096 or to % 4096 or length % 4096:
                raise OSError(errno.EINVAL, "not aligned")
        self.cloned += length
        os.pwrite(target, os.pread(source, length, start), to)
        return 0


@pytest.mark.parametrize(("start", "to"), [(0, 0), (100, 100), (5000, 904), (300, 4396)])
def test_blocks_are_shared_where_offsets_agree(
    start: int, to: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeReflink()
    monkeypatch.setattr(fcntl, "ioctl", fake)
    assert move(tmp_path, start, 60_000, to) == DATA[start : start + 60_000]
    assert 60_000 - 2 * 4096 < fake.cloned <= 60_000
    assert fake.cloned % 4096 == 0


def test_nothing_is_shared_where_offsets_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeReflink()
    monkeypatch.setattr(fcntl, "ioctl", fake)
    assert move(tmp_path, 10, 60_000, 8) == DATA[10:60_010]
    assert fake.cloned == 0


def test_whole_files_are_reflinked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", FakeReflink())
    (tmp_path / "a").write_bytes(DATA)
    moved = transfer_file(tmp_path / "a", tmp_path / "b")
    assert (moved.mode, moved.written) == ("reflink", 0)
    assert (tmp_path / "b").read_bytes() == DATA


@pytest.mark.parametrize("size", [0, 1, 70_001])
def test_copies_count_what_they_write(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_reflink(monkeypatch)
    (tmp_path / "a").write_bytes(DATA[:size])
    moved = transfer_file(tmp_path / "a", tmp_path / "b")
    assert (moved.file, moved.mode, moved.written) == ("b", "copy", size)
    assert (tmp_path / "b").read_bytes() == DATA[:size]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask_not_the_source(umask: int, mode: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "a").chmod(0o444)
    before = os.umask(umask)
    try:
        transfer_file(tmp_path / "a", tmp_path / "b")
        copying.write_file(tmp_path / "c", [b"x"])
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "abc"] == [0o444, mode, mode]


def test_two_hops_of_links_are_followed_to_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    (tmp_path / "hop").symlink_to("blob")
    (tmp_path / "name").symlink_to(tmp_path / "hop")
    for link in (False, True):
        moved = transfer_file(tmp_path / "name", tmp_path / f"out{link}", link=link)
        assert moved.mode == ("hardlink" if link else moved.mode)
        assert not (tmp_path / f"out{link}").is_symlink()
        assert (tmp_path / f"out{link}").samefile(tmp_path / "blob") is link
    assert (tmp_path / "outFalse").read_bytes() == DATA


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_links_that_cannot_be_made_become_copies(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse(code))
    (tmp_path / "a").write_bytes(DATA)
    moved = transfer_file(tmp_path / "a", tmp_path / "b", link=True)
    assert moved.mode in ("copy", "reflink")
    assert (tmp_path / "b").read_bytes() == DATA


def test_targets_are_always_new_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "b").write_bytes(b"precious")
    for link in (False, True):
        with pytest.raises(CheckpointError):
            transfer_file(tmp_path / "a", tmp_path / "b", link=link)
    with pytest.raises(CheckpointError):
        copying.write_file(tmp_path / "b", [b"x"])
    assert (tmp_path / "b").read_bytes() == b"precious"


def test_a_source_that_is_gone_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(MalformedCheckpointError, match="a changed while"):
        transfer_file(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:7])))
    assert copying.write_file(tmp_path / "a", [DATA[:100], b"", DATA[100:150]]) == 150
    assert (tmp_path / "a").read_bytes() == DATA[:150]
