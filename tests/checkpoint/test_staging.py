"""An output folder appears whole or not at all, and nothing else is ever lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from dcsurgery.checkpoint import destination, staging
from dcsurgery.checkpoint.checks import WRITTEN
from dcsurgery.checkpoint.destination import check_output, on_same_disk
from dcsurgery.checkpoint.staging import LOCK, NEW, OLD, staged_output
from dcsurgery.checkpoint.written import record
from dcsurgery.errors import CheckpointError, DcSurgeryError, OutputExistsError, RequestError
from tests.checkpoint.folders import write


def fill(output: Path, text: str = "new", **options: Any) -> None:
    with staged_output(output, **options) as folder:
        (folder / "config.json").write_text(text)


def tree(folder: Path) -> dict[str, str | None]:
    """Every name below a folder but of our record; the text of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != WRITTEN
    }


def old(output: Path, files: dict[str, bytes] | None = None) -> Path:
    """An output as an earlier run of ours left it."""
    write(output, files or {"config.json": b"old"})
    record(output)
    return output


@pytest.mark.parametrize("there", ["nothing", "empty folder", "parents missing"])
def test_a_filled_folder_appears_and_nothing_else_stays(there: str, tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "OUT" if there == "parents missing" else tmp_path / "OUT"
    if there == "empty folder":
        output.mkdir()
    with staged_output(output) as folder:
        assert not (output / "config.json").exists()
        (folder / "config.json").write_text("new")
        assert not (output / "config.json").exists()
    assert tree(output) == {"config.json": "new"}
    assert os.listdir(output.parent) == ["OUT"]
    assert output.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", ["nothing", "old", "parents missing"])
def test_whatever_is_raised_leaves_everything_as_it_was(
    there: str, error: type[BaseException], tmp_path: Path
) -> None:
    output = tmp_path / "a" / "b" / "OUT" if there == "parents missing" else tmp_path / "OUT"
    if there == "old":
        old(output)
    before = tree(tmp_path)
    with pytest.raises(error), staged_output(output, overwrite=True) as folder:
        (folder / "half").write_text("x")
        raise error
    assert tree(tmp_path) == before


def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_exchange", lambda *_: False)


@pytest.mark.parametrize("exchange", [True, False])
def test_overwrite_replaces_the_whole_folder(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        no_exchange(monkeypatch)
    old(tmp_path / "OUT", {"config.json": b"old", "more/stale": b"old"})
    fill(tmp_path / "OUT", overwrite=True)
    assert tree(tmp_path) == {"OUT": None, "OUT/config.json": "new"}


def test_linux_exchanges_folders(tmp_path: Path) -> None:
    write(tmp_path, {"a/x": b"1", "b/y": b"2"})
    assert staging._exchange(tmp_path / "a", tmp_path / "b")
    assert tree(tmp_path) == {"a": None, "a/y": "2", "b": None, "b/x": "1"}
    assert not staging._exchange(tmp_path / "a", tmp_path / "absent")


class Killed(BaseException):
    """Stands for SIGKILL: nothing may run after it, so the cleaning is cut out too."""


def killed_at(step: str, monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    """Overwrite `output`, die at a step of the publishing, leave what a killed process leaves."""
    real_rename, real_exchange, renames = os.rename, staging._exchange, 0

    def rename(*args: Any) -> None:
        nonlocal renames
        renames += 1
        if step == f"before rename {renames}":
            raise Killed
        real_rename(*args)
        if step == f"after rename {renames}":
            raise Killed

    def exchange(*args: Path) -> bool:
        if step == "before exchange":
            raise Killed
        done = real_exchange(*args)
        if step == "after exchange":
            raise Killed
        return done and "rename" not in step

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        patch.setattr(staging, "_exchange", exchange if "exchange" in step else lambda *_: False)
        patch.setattr(staging, "_clear", lambda root, output, lock: os.close(lock))
        with pytest.raises(Killed):
            fill(output, overwrite=True)


STEPS = {
    "before exchange": "old", "after exchange": "new",
    "before rename 1": "old", "after rename 1": None, "before rename 2": None,
    "after rename 2": "new",
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("again", ["overwrite", "plain", "emptied"])
def test_a_kill_while_replacing_loses_neither_folder(
    step: str, again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, root = tmp_path / "OUT", tmp_path / "OUT.partial"
    old(output)
    killed_at(step, monkeypatch, output)
    left = STEPS[step]
    assert root.is_dir()
    if left is None:
        assert not output.exists()
        assert tree(root / OLD) == {"config.json": "old"}
    else:
        assert tree(output) == {"config.json": left}
    if again == "emptied" and left is None:
        output.mkdir()
    if again == "overwrite":
        fill(output, "newest", overwrite=True)
        assert tree(tmp_path) == {"OUT": None, "OUT/config.json": "newest"}
        return
    # Without --overwrite the next run refuses, and what it finds is whole: the old one is back.
    with pytest.raises(OutputExistsError):
        fill(output)
    assert tree(output) == {"config.json": left or "old"}
    if left is None:
        assert not root.exists()


def test_an_old_folder_set_aside_is_never_deleted_for_a_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = old(tmp_path / "OUT")
    killed_at("after rename 1", monkeypatch, output)
    old(output, {"other.json": b"put here meanwhile"})
    with pytest.raises(OutputExistsError, match="left the former OUT"):
        fill(output, overwrite=True)
    assert tree(tmp_path / "OUT.partial" / OLD) == {"config.json": "old"}
    assert tree(output) == {"other.json": "put here meanwhile"}


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_between_two_renames_puts_the_old_folder_back(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_exchange(monkeypatch)
    old(tmp_path / "OUT")
    real, count = os.rename, 0

    def rename(*args: Any) -> None:
        nonlocal count
        count += 1
        real(*args)
        if count == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "OUT", overwrite=True)
    text = "old" if at == 1 else "new"
    assert tree(tmp_path) == {"OUT": None, "OUT/config.json": text}


def test_a_second_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_exchange(monkeypatch)
    old(tmp_path / "OUT")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if source.name == NEW:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match="cannot publish"):
        fill(tmp_path / "OUT", overwrite=True)
    assert tree(tmp_path) == {"OUT": None, "OUT/config.json": "old"}


@pytest.mark.parametrize(
    "remains",
    [{}, {LOCK: b""}, {LOCK: b"", "new/half": b"x"}, {LOCK: b"", "new": b"a file"},
     {LOCK: b"", "old/x": b"x"}],
)  # fmt: skip
def test_remains_of_a_killed_run_are_cleared(remains: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "OUT.partial").mkdir()
    write(tmp_path / "OUT.partial", remains)
    fill(tmp_path / "OUT")
    assert tree(tmp_path) == {"OUT": None, "OUT/config.json": "new"}


STRANGERS: dict[str, Callable[[Path], object]] = {
    "folder without our lock": lambda p: write(p, {"new/mine": b"x"}),
    "folder with more": lambda p: write(p, {LOCK: b"", "mine": b"x"}),
    "folder with a lock of its own": lambda p: write(p, {"lock": b"", "new/mine": b"x"}),
    "file": lambda p: p.write_text("mine"),
    "link to a folder": lambda p: link(p, str(write(p.parent / "x", {LOCK: b"", "new/x": b"x"}))),
    "dangling link": lambda p: p.symlink_to("nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_in_the_way_is_left_alone(name: str, tmp_path: Path) -> None:
    STRANGERS[name](tmp_path / "OUT.partial")
    before = tree(tmp_path)
    with pytest.raises((OutputExistsError, RequestError)) as caught:
        fill(tmp_path / "OUT")
    assert "OUT.partial" in caught.value.message
    assert tree(tmp_path) == before


def test_a_second_writer_is_told_so(tmp_path: Path) -> None:
    with staged_output(tmp_path / "OUT") as folder:
        with pytest.raises(OutputExistsError, match="another process is writing"):
            fill(tmp_path / "OUT")
        (folder / "config.json").write_text("first")
    assert tree(tmp_path) == {"OUT": None, "OUT/config.json": "first"}


def test_an_output_that_appears_meanwhile_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="appeared"), staged_output(tmp_path / "OUT"):
        write(tmp_path / "OUT", {"config.json": b"a stranger's"})
    assert tree(tmp_path) == {"OUT": None, "OUT/config.json": "a stranger's"}


def test_parents_that_vanish_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run that fails removes the parents it made, even if another run counts on them.
    real, struck = staging._make_root, False

    def vanish(root: Path) -> None:
        nonlocal struck
        if not struck:
            struck = True
            root.parent.rmdir()
        real(root)

    monkeypatch.setattr(staging, "_make_root", vanish)
    fill(tmp_path / "a" / "OUT")
    assert tree(tmp_path) == {"a": None, "a/OUT": None, "a/OUT/config.json": "new"}


def test_a_staging_folder_that_vanishes_at_once_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another run removes its folder right after our mkdir said that it exists.
    real, count = os.mkdir, 0

    def mkdir(path: Any, mode: int = 0o777, **options: Any) -> None:
        nonlocal count
        if str(path).endswith(".partial"):
            count += 1
            if count < 3:
                raise FileExistsError(errno.EEXIST, "File exists")
        real(path, mode, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    fill(tmp_path / "OUT")
    assert tree(tmp_path) == {"OUT": None, "OUT/config.json": "new"}


def test_a_disk_without_locks_is_a_clean_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(staging.fcntl, "flock", refuse)
    with pytest.raises(RequestError, match="No locks available"):
        fill(tmp_path / "OUT")


def test_all_bytes_and_names_are_durable_before_the_output_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(opened: int) -> None:
        events.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{opened}")))
        real_sync(opened)

    def rename(source: Any, target: Any) -> None:
        events.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    with staged_output(tmp_path / "a" / "b" / "OUT") as folder:
        write(folder / "sub" / "deep", {"written": b"x"})
        (tmp_path / "source").write_bytes(b"y")
        os.link(tmp_path / "source", folder / "linked")
    at = events.index("rename")
    assert events[:at] == [
        "sync written", "sync deep", "sync sub", f"sync {WRITTEN}", "sync linked", "sync new",
    ]  # fmt: skip
    after = events[at + 1 :]
    assert after[:2] == ["sync b", "sync OUT.partial"]
    assert {"sync a", f"sync {tmp_path.name}"} <= set(after)


def test_the_old_folder_is_removed_only_after_the_exchange_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(tmp_path / "OUT")
    seen: list[bool] = []
    real = staging._sync

    def sync(folder: Path) -> None:
        if folder == tmp_path:
            seen.append((tmp_path / "OUT.partial" / NEW / "config.json").read_text() == "old")
        real(folder)

    monkeypatch.setattr(staging, "_sync", sync)
    fill(tmp_path / "OUT", overwrite=True)
    assert seen == [True]


def file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


PLACES: dict[str, tuple[Callable[[Path], Path], type[DcSurgeryError]]] = {
    "source": (lambda p: p / "model", RequestError),
    "inside source": (lambda p: p / "model" / "x" / "OUT", RequestError),
    "around source": (lambda p: p, RequestError),
    "linked source": (lambda p: link(p / "l", "model") / "OUT", RequestError),
    "file": (lambda p: file(p / "OUT"), OutputExistsError),
    "link to a folder": (lambda p: link(p / "OUT", "other"), OutputExistsError),
    "dangling link": (lambda p: link(p / "OUT", "nowhere"), OutputExistsError),
    "link to itself": (lambda p: link(p / "OUT", "OUT"), DcSurgeryError),
    "full folder": (lambda p: file(p / "OUT" / "x").parent, OutputExistsError),
    "below a file": (lambda p: file(p / "OUT") / "x", RequestError),
    "cache": (lambda p: p / "models--a--b" / "snapshots" / "OUT", RequestError),
    "long name": (lambda p: p / ("x" * 300), RequestError),
    "name too long for staging": (lambda p: p / ("x" * 250), RequestError),
    "NUL": (lambda p: p / "a\0b", RequestError),
    "loop": (lambda p: link(p / "loop", "loop") / "OUT", RequestError),
    "here": (lambda p: Path("."), RequestError),
    "home": (lambda p: Path.home(), DcSurgeryError),
    "root": (lambda p: Path("/"), DcSurgeryError),
    "mount": (lambda p: Path("/dev/shm"), DcSurgeryError),
    "parent by dots": (lambda p: p / "here" / "..", RequestError),
    "model in staging": (lambda p: p / "model.partial", RequestError),
}  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_refused(
    name: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, kind = PLACES[name]
    write(tmp_path / "model", {"config.json": b"{}"})
    (tmp_path / "other").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    output, source = place(tmp_path), tmp_path / "model"
    if name == "model in staging":
        output, source = tmp_path / "OUT", write(tmp_path / "OUT.partial", {"new/c": b""}) / "new"
    before = tree(tmp_path)
    for attempt in (check_output, fill):
        if attempt is check_output and name == "name too long for staging":
            continue
        with pytest.raises(DcSurgeryError) as caught:
            attempt(output, overwrite=overwrite, sources=[source])
        assert isinstance(caught.value, kind), caught.value
        assert len(caught.value.hint) > 10
        assert tree(tmp_path) == before


def test_a_parent_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere: the system's answer is replaced.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(RequestError, match="is not writable"):
        fill(tmp_path / "x" / "OUT")
    assert not tree(tmp_path)


def test_a_parent_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="too long"):
        fill(tmp_path / "a" / ("x" * 300) / "OUT")
    with pytest.raises(RequestError):
        fill(tmp_path / "a" / "b" / ("x" * 250))
    assert not tree(tmp_path)


def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: usage)
    fill(tmp_path / "a" / "fits", needed=5_000_000)
    with pytest.raises(
        CheckpointError, match=r"5,000,001 B are needed .* 5,000,000 B are free"
    ) as caught:
        fill(tmp_path / "b" / "OUT", needed=5_000_001)
    assert "free some space" in caught.value.hint
    with pytest.raises(CheckpointError, match=r"14\.1 GB are needed .*, 5 MB are free"):
        fill(tmp_path / "b" / "OUT", needed=14_130_000_000)
    assert os.listdir(tmp_path) == ["a"]


def test_disks_are_told_apart(tmp_path: Path) -> None:
    assert on_same_disk(tmp_path, tmp_path / "a" / "b")
    assert not on_same_disk(tmp_path, Path("/proc/x"))
    assert not on_same_disk(tmp_path / "absent", tmp_path)


def test_a_writable_parent_with_a_relative_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("OUT"))
    fill(Path("a/../OUT2/"))
    assert tree(tmp_path) | {"a": None} == {
        "OUT": None, "OUT/config.json": "new", "OUT2": None, "OUT2/config.json": "new", "a": None,
    }  # fmt: skip


def test_a_staging_folder_that_goes_while_it_is_compared_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, root = tmp_path / "base", tmp_path / "OUT.partial"
    base.mkdir()
    root.mkdir()
    samefile = Path.samefile

    def gone(self: Path, other: Path) -> bool:
        if other == root and root.exists():
            root.rmdir()  # the other run ends
        return samefile(self, other)

    monkeypatch.setattr(Path, "samefile", gone)
    check_output(tmp_path / "OUT", overwrite=False, sources=[base])
    assert not root.exists()
