"""A process that has imported everything once and forks a command line per job.

Every job is the real program with the real Hub client, in a process of its own, without the
seconds that imports take. Reads one JSON job a line: {"args", "env", "cwd"} starts one and answers
its pid; {"wait": pid} answers exit code (negative for a signal), stdout and stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hub import Hub

LIGHT = (
    "dcsurgery.cli.main", "dcsurgery.cli.push", "dcsurgery.publishing.push", "huggingface_hub",
    "huggingface_hub.hf_api", "huggingface_hub.repocard", "huggingface_hub.lfs", "rich.console",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "yaml",
)  # fmt: skip
HEAVY = ("dcsurgery.verification.parity", "transformers.models.llava.modeling_llava", "PIL.Image")


def run_job(job: dict[str, Any], folder: Path) -> None:
    """Become the command line; never returns."""
    from dcsurgery.cli.main import main

    code = 1
    try:
        os.environ.update(job.get("env", {}))
        for number, name in ((1, "stdout"), (2, "stderr")):
            target = os.open(folder / f"{os.getpid()}.{name}", os.O_CREAT | os.O_WRONLY)
            os.dup2(target, number)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(job["cwd"])
        sys.argv = ["dcsurgery", *job["args"]]
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def serve(folder: Path, heavy: bool) -> None:
    """Answer jobs until stdin ends."""
    for name in (*LIGHT, *(HEAVY if heavy else ())):
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            pid = job["wait"]
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said = [(folder / f"{pid}.{name}").read_text() for name in ("stdout", "stderr")]
            print(json.dumps([code, *said]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            run_job(job, folder)
        print(json.dumps(pid), flush=True)


@dataclass(frozen=True)
class Done:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout as JSON."""
        return json.loads(self.out)


class Pusher:
    """The test's end."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self.folder = process, folder

    def ask(self, job: dict[str, Any]) -> Any:
        """Send a job and return the answer."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *args: object, token: str = "hf_writer") -> int:
        """Start a command and return its pid."""
        words = [str(arg) for arg in args]
        job = {"args": words, "env": {"HF_TOKEN": token}, "cwd": str(self.folder)}
        pid: int = self.ask(job)
        return pid

    def wait(self, pid: int) -> Done:
        """Return what a started command said: never a token."""
        done = Done(*self.ask({"wait": pid}))
        assert "hf_" not in done.out + done.err
        return done

    def run(self, *args: object, token: str = "hf_writer") -> Done:
        """Run a command to its end."""
        return self.wait(self.start(*args, token=token))


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    """The environment of a client of this Hub that has nothing of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "COLUMNS": "100",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@contextmanager
def running_pusher(hub: Hub, folder: Path, *, heavy: bool) -> Iterator[Pusher]:
    """Yield a pusher whose commands talk to `hub`; `heavy` ones can verify."""
    spoken = folder / "said"
    spoken.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.publishing.pusher", str(spoken), str(int(heavy))]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=environment(hub, folder), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield Pusher(process, folder)
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2] == "1")


NOTHING = "nothing was committed"


def refused(done: Done, *words: str, nothing: bool = True) -> None:
    """Assert one line of error and one of advice, with these words and what was committed."""
    assert done.code == 1, done
    lines = done.err.strip().split("\n")
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], done.err
    for word in words:
        assert word in done.err
    assert not nothing or NOTHING in lines[0]
    assert done.out == ""
