"""--overwrite replaces what dcsurgery wrote, and nothing that anybody else put there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dcsurgery.checkpoint import written
from dcsurgery.checkpoint.checks import WRITTEN
from dcsurgery.checkpoint.destination import check_output
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.checkpoint.written import clear, foreign, record, strangers
from dcsurgery.errors import DcSurgeryError, OutputExistsError, RequestError
from tests.checkpoint.folders import write

FILES = {
    "config.json": b"{}",
    "dense_connector/plan.json": b"{}",
    "dense_connector/lora/adapter_config.json": b"{}",
}


def ours(folder: Path) -> Path:
    """An output as staged_output leaves it."""
    with staged_output(folder) as new:
        write(new, FILES)
    return folder


def everything(folder: Path) -> dict[str, object]:
    """Every name with its content, or where its link leads; links are not followed."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def linked(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# What a stranger did to our output, and the name that the refusal must say.
STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a note on top": (lambda p: write(p, {"notes.txt": b"mine"}), "notes.txt"),
    "a note beside the plan": (
        lambda p: write(p, {"dense_connector/notes.txt": b"mine"}), "dense_connector/notes.txt",
    ),
    "a note at the bottom": (
        lambda p: write(p, {"dense_connector/lora/a.md": b"mine"}), "dense_connector/lora/a.md",
    ),
    "a folder": (lambda p: write(p, {"thesis/chapter.tex": b"mine"}), "thesis/"),
    "an empty folder": (lambda p: (p / "results").mkdir(), "results/"),
    "a hidden file": (lambda p: write(p, {".env": b"mine"}), ".env"),
    "a repository": (lambda p: write(p, {".git/HEAD": b"ref: x"}), ".git/"),
    "an edited file": (lambda p: write(p, {"config.json": b"[]"}), "config.json (changed)"),
    "a file for a folder": (lambda p: linked(p / "more", "/"), "more (a link)"),
    "a link for a file": (lambda p: linked(p / "config.json", "/etc/hosts"), "config.json (a li"),
    "a broken link": (lambda p: linked(p / "old", "nowhere"), "old (a link)"),
    "a pipe": (lambda p: os.mkfifo(p / "pipe"), "pipe (no regular file)"),
    "a lost record": (lambda p: (p / WRITTEN).unlink(), "config.json, dense_connector/"),
    "a broken record": (lambda p: write(p, {WRITTEN: b"[1]"}), ".dcsurgery.json, config.json"),
    "another's record": (lambda p: write(p, {WRITTEN: b'{"files": {"x": 1}}'}), "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_not_ours_is_named_and_kept(name: str, tmp_path: Path) -> None:
    output = ours(tmp_path / "OUT")
    change, said = STRANGERS[name]
    change(output)
    before = everything(tmp_path)
    for attempt in (check_output, ours_again):
        with pytest.raises(OutputExistsError) as caught:
            attempt(output, overwrite=True)
        assert said in caught.value.message, caught.value.message
        assert "another output folder" in caught.value.hint
    assert everything(tmp_path) == before


def ours_again(output: Path, *, overwrite: bool) -> None:
    with staged_output(output, overwrite=overwrite):
        raise AssertionError("it must be refused before anything is written")


def test_a_strangers_folder_is_refused_with_the_first_names_and_their_number(
    tmp_path: Path,
) -> None:
    output = write(tmp_path / "Documents", {f"letter-{i}.txt": b"dear" for i in range(7)})
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError) as caught:
            check_output(output, overwrite=overwrite)
        said = "letter-0.txt, letter-1.txt, letter-2.txt, letter-3.txt and 3 more"
        assert said in caught.value.message
        assert "--overwrite" not in caught.value.hint
    assert len(everything(output)) == 7


def test_what_file_managers_leave_and_what_was_deleted_does_not_matter(tmp_path: Path) -> None:
    output = ours(tmp_path / "OUT")
    write(output, {".DS_Store": b"x", "dense_connector/Thumbs.db": b"x"})
    (output / "config.json").unlink()
    assert strangers(output) == []
    with staged_output(output, overwrite=True) as new:
        write(new, {"new.json": b"{}"})
    assert set(everything(output)) == {"new.json", WRITTEN}


def test_a_large_file_is_known_by_size_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "WHOLE", 100)
    monkeypatch.setattr(written, "EDGE", 10)
    write(tmp_path, {"model.safetensors": bytes(500)})
    record(tmp_path)
    assert strangers(tmp_path) == []
    for at in (0, 499):
        changed = bytearray(500)
        changed[at] = 1
        write(tmp_path, {"model.safetensors": bytes(changed)})
        assert strangers(tmp_path) == ["model.safetensors (changed)"]


def test_what_comes_in_while_we_write_is_kept(tmp_path: Path) -> None:
    output = ours(tmp_path / "OUT")
    with pytest.raises(OutputExistsError, match=r"late\.txt"):
        with staged_output(output, overwrite=True) as new:
            write(new, {"config.json": b"new"})
            write(output, {"late.txt": b"mine"})
    assert (output / "late.txt").read_bytes() == b"mine"
    assert (output / "config.json").read_bytes() == b"{}"
    assert not (tmp_path / "OUT.partial").exists()


@pytest.mark.parametrize("place", ["", "dense_connector"])
def test_a_read_only_output_was_protected_by_somebody(place: str, tmp_path: Path) -> None:
    output = ours(tmp_path / "OUT")
    (output / place).chmod(0o555)
    try:
        with pytest.raises(OutputExistsError, match="is read-only"):
            check_output(output, overwrite=True)
    finally:
        (output / place).chmod(0o755)


def test_a_mounted_disk_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = ours(tmp_path / "OUT")
    inside = output / "dense_connector"
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == inside)
    with pytest.raises(OutputExistsError, match=r"dense_connector/ \(a mounted disk\)"):
        check_output(output, overwrite=True)


def test_another_name_of_the_source_is_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a disk that ignores case: two names, neither a link, one folder. Resolving a link is
    # switched off to have such a pair here.
    model = write(tmp_path / "Model", {"config.json": b"{}"})
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "there").symlink_to(tmp_path)
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: self.absolute())
    for output in (tmp_path / "model" / "OUT", tmp_path / "there" / "model", tmp_path / "there"):
        with pytest.raises(RequestError, match="contain each other"):
            check_output(output, overwrite=True, sources=[model])


@pytest.mark.parametrize(
    "output", ["MODEL", "MODEL/..", "MODEL/OUT", "MODEL/./", "x/../MODEL", "MODEL/../MODEL/sub/.."]
)
def test_a_shell_cannot_name_the_source_or_what_holds_it(output: str, tmp_path: Path) -> None:
    write(tmp_path / "MODEL", {"config.json": b"{}", "notes.txt": b"mine"})
    (tmp_path / "MODEL" / "sub").mkdir()
    before = everything(tmp_path)
    with pytest.raises(DcSurgeryError):
        check_output(tmp_path / output, overwrite=True, sources=[tmp_path / "MODEL"])
    assert everything(tmp_path) == before


def test_clearing_removes_ours_and_keeps_the_rest(tmp_path: Path) -> None:
    write(tmp_path, {"a/ours": b"1", "a/theirs": b"2", "b/ours": b"3"})
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")

    def mine(name: str, path: Path | None) -> str | None:
        return None if path is None or path.name == "ours" else ""

    assert foreign(tmp_path, mine) == ["a/link (a link)", "a/theirs"]
    clear(tmp_path, mine)
    assert set(everything(tmp_path)) == {"a", "a/link", "a/theirs"}


def test_an_ordinary_users_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    # In a process of an ordinary user: root reads everything.
    code = """
import os, sys
from pathlib import Path
from dcsurgery.checkpoint.destination import check_output
from dcsurgery.errors import DcSurgeryError
out = Path(sys.argv[1]) / "OUT"
(out / "sealed").mkdir(parents=True)
if os.getuid() == 0:
    os.chown(out, 12345, 12345); os.setgroups([]); os.setgid(12345); os.setuid(12345)
out.chmod(0)
try:
    check_output(out, overwrite=True)
except DcSurgeryError as error:
    print(error.message)
finally:
    out.chmod(0o700)
"""
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:3]:
        folder.chmod(0o755)
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert "Permission denied" in found.stdout
