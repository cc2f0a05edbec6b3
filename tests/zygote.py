"""A torch-free process that forks conversions, so that hundreds can be killed in seconds.

Reads one JSON list of jobs a line, forks one child for each at the same moment, and answers once
they are gone with their exit codes (negative for a signal) and what they said.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Operations on names; each is announced before it happens.
EVENTS = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir",
    "os.link", "shutil.rmtree", "os.chmod", "ctypes.dlsym",
}  # fmt: skip


def strike_at(number: int, name: str) -> None:
    """Send this process a signal right before its `number`-th operation."""
    count = 0

    def hook(event: str, _: Any) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == number:
                os.kill(os.getpid(), getattr(signal, name))

    sys.addaudithook(hook)


def convert(job: dict[str, Any]) -> str:
    """Run one job; return "done", the name of the error, or "interrupted"."""
    from dcsurgery.checkpoint import staging
    from dcsurgery.errors import DcSurgeryError
    from dcsurgery.surgery.convert import convert_checkpoint

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not job.get("exchange", True):
        staging._exchange = lambda *_: False
    if "strike" in job:
        strike_at(job["strike"], job["signal"])
    try:
        convert_checkpoint(job["base"], job["output"], **job.get("options", {}))
    except DcSurgeryError as error:
        return type(error).__name__
    except KeyboardInterrupt:
        return "interrupted"
    return "done"


def fork(job: dict[str, Any], barrier: int, said: int) -> int:
    """Fork a child that waits until `barrier` is closed; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.read(barrier, 1)
            os.write(said, (convert(job) + "\n").encode())
            code = 0
        finally:
            os._exit(code)
    return pid


def serve() -> None:
    """Answer requests until stdin ends."""
    import dcsurgery.surgery.convert

    # Whatever a conversion imports late, once.
    with tempfile.TemporaryDirectory() as folder:
        base, output = os.environ["ZYGOTE_BASE"], os.path.join(folder, "OUT")
        dcsurgery.surgery.convert.convert_checkpoint(base, output, overwrite=True)
    for line in sys.stdin:
        barrier, release = os.pipe()
        heard, said = os.pipe()
        jobs = json.loads(line)
        pids = [fork(job, barrier, said) for job in jobs]
        os.close(barrier)
        os.close(said)
        os.write(release, b"x" * len(pids))
        os.close(release)
        for job, pid in zip(jobs, pids, strict=True):
            if "kill_after" in job:
                time.sleep(job["kill_after"])
                os.kill(pid, signal.SIGKILL)  # not waited for yet: the pid is still its own
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        with os.fdopen(heard) as stream:
            words = sorted(stream.read().split())
        print(json.dumps([codes, words]), flush=True)


class Zygote:
    """The parent's end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, *jobs: dict[str, Any]) -> tuple[list[int], list[str]]:
        """Run jobs; returns exit codes and the words of those who spoke, sorted."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        codes, words = json.loads(self.process.stdout.readline())
        return codes, words


@contextmanager
def running_zygote(base: Path) -> Iterator[Zygote]:
    """Yield a zygote that has converted `base` once, so that everything is imported."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "ZYGOTE_BASE": str(base), "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.zygote"], cwd=root, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield Zygote(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 0


if __name__ == "__main__":
    serve()
