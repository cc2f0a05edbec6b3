"""Killed, interrupted or raced at any moment: outputs are whole or absent, sources untouched."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.checkpoint.written import record
from dcsurgery.surgery.convert import convert_checkpoint
from tests.checkpoint.folders import Specs, llava, write
from tests.zygote import Zygote, running_zygote

pytestmark = pytest.mark.slow

BIG: Specs = [(f"language_model.model.{i}", "F16", (1000, 4000)) for i in range(4)]


def digest(folder: Path) -> str:
    """One hash of every name and byte below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0")
        if path.is_file():
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


class Place:
    """A base, what becomes of it, and a folder to work in."""

    def __init__(self, root: Path, files: dict[str, bytes]) -> None:
        self.root = root
        self.base = write(root / "base", files)
        self.base_digest = digest(self.base)
        convert_checkpoint(self.base, root / "whole")
        self.new = digest(root / "whole")
        shutil.rmtree(root / "whole")
        self.work = root / "work"
        self.work.mkdir()
        self.output = self.work / "OUT"
        self.old = ""

    def put_old(self) -> None:
        """Lay an older output there."""
        shutil.rmtree(self.output, ignore_errors=True)
        write(self.output, {"config.json": b"old", "sub/weights": b"old" * 1000})
        record(self.output)
        self.old = digest(self.output)

    def job(self, **more: Any) -> dict[str, Any]:
        """A conversion of the base."""
        return {"base": str(self.base), "output": str(self.output), **more}

    def state(self) -> str:
        """Return "absent", "old" or "new"; anything else is a broken promise."""
        if not self.output.exists():
            return "absent"
        found = digest(self.output)
        assert found in (self.new, self.old), sorted(self.output.rglob("*"))
        return "new" if found == self.new else "old"

    def names(self) -> list[str]:
        """What lies in the folder of the output."""
        return sorted(os.listdir(self.work))


@pytest.fixture(scope="module")
def tiny() -> Iterator[Place]:
    """A base of kilobytes, in memory where the system has such a disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Place(Path(folder), llava(shards=3))


@pytest.fixture(scope="module")
def zygote(tiny: Place) -> Iterator[Zygote]:
    with running_zygote(tiny.base) as running:
        yield running


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A base of 33 MB on the disk."""
    return Place(tmp_path_factory.mktemp("large"), llava(shards=3, extra=BIG))


@pytest.mark.parametrize("overwrite", [False, True])
def test_kill_at_random_moments(overwrite: bool, large: Place, zygote: Zygote) -> None:
    draw = random.Random(23)
    job = large.job(options={"overwrite": overwrite})
    allowed = {"old", "new"} if overwrite else {"absent", "new"}
    durations = [measure(large, zygote, job) for _ in range(3)]
    seen = []
    count = 10 if overwrite else 30
    for index in range(count):
        if large.output.exists():
            shutil.rmtree(large.output)
        large.put_old() if overwrite else None
        delay = draw.uniform(index / count, (index + 1) / count) * min(durations)
        code = zygote.run(job | {"kill_after": delay})[0][0]
        seen.append(code)
        state = large.state()
        assert state in allowed
        assert code == -signal.SIGKILL or state == "new"
        assert digest(large.base) == large.base_digest
        # Mostly the next run, which is killed too, meets the remains.
        if index % 5 == 4:
            assert zygote.run(large.job(options={"overwrite": True})) == ([0], ["done"])
            assert large.state() == "new"
            assert large.names() == ["OUT"]
    assert -signal.SIGKILL in seen


def measure(place: Place, zygote: Zygote, job: dict[str, Any]) -> float:
    """Seconds of a run that nobody kills."""
    shutil.rmtree(place.output, ignore_errors=True)
    started = time.perf_counter()
    assert zygote.run(job) == ([0], ["done"])
    return time.perf_counter() - started


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "overwrite": {"options": {"overwrite": True}},
    "overwrite without exchange": {"options": {"overwrite": True}, "exchange": False},
}


def each_strike(place: Place, zygote: Zygote, mode: str, name: str) -> Iterator[str]:
    """Send a signal before the first, second, ... operation on names, until a run gets through.

    Yields what the run said ("" when it was killed) for each.
    """
    for number in range(1, 2000):
        shutil.rmtree(place.work)
        place.work.mkdir()
        if mode != "plain":
            place.put_old()
        job = place.job(**MODES[mode], strike=number, signal=name)
        codes, words = zygote.run(job)
        said = words[0] if words else ""
        assert codes == [0] or (codes == [-signal.SIGKILL] and name == "SIGKILL"), codes
        if said == "done":
            assert number > 30
            return
        yield said
    raise AssertionError("no run got through")


@pytest.mark.parametrize("mode", MODES)
def test_kill_before_every_operation(mode: str, tiny: Place, zygote: Zygote) -> None:
    states = set()
    for said in each_strike(tiny, zygote, mode, "SIGKILL"):
        assert said == ""
        state = tiny.state()
        states.add(state)
        if state == "absent" and mode != "plain":
            assert mode.endswith("without exchange")
            assert digest(tiny.work / "OUT.partial" / "old") == tiny.old
        again = tiny.job(**MODES[mode]) if state != "new" else tiny.job(**MODES["overwrite"])
        assert zygote.run(again) == ([0], ["done"])
        assert tiny.state() == "new"
        assert tiny.names() == ["OUT"]
    assert digest(tiny.base) == tiny.base_digest
    assert (
        states
        == {
            "plain": {"absent", "new"},
            "overwrite": {"old", "new"},
            "overwrite without exchange": {"old", "absent", "new"},
        }[mode]
    )


@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_before_every_operation_leaves_nothing_behind(
    mode: str, tiny: Place, zygote: Zygote
) -> None:
    states = set()
    for said in each_strike(tiny, zygote, mode, "SIGINT"):
        assert said == "interrupted"
        state = tiny.state()
        states.add(state)
        assert tiny.names() == ([] if state == "absent" else ["OUT"])
    assert states == ({"absent", "new"} if mode == "plain" else {"old", "new"})
    assert digest(tiny.base) == tiny.base_digest


@pytest.mark.parametrize("parents", ["", "a/b"])
def test_of_two_runs_exactly_one_wins(parents: str, tiny: Place, zygote: Zygote) -> None:
    for _ in range(20):
        shutil.rmtree(tiny.work)
        tiny.work.mkdir()
        output = tiny.work / parents / "OUT"
        job = tiny.job() | {"output": str(output)}
        codes, words = zygote.run(job, job)
        assert (codes, words) == ([0, 0], ["OutputExistsError", "done"])
        assert digest(output) == tiny.new
        assert os.listdir(output.parent) == ["OUT"]


def test_runs_that_replace_one_output_leave_it_whole(tiny: Place, zygote: Zygote) -> None:
    job = tiny.job(**MODES["overwrite"])
    for _ in range(20):
        shutil.rmtree(tiny.work)
        tiny.work.mkdir()
        tiny.put_old()
        codes, words = zygote.run(job, job, job)
        assert codes == [0, 0, 0]
        assert set(words) <= {"OutputExistsError", "done"}
        assert "done" in words
        assert tiny.state() == "new"
        assert tiny.names() == ["OUT"]
