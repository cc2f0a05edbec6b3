"""What every command promises: exit codes, words instead of tracebacks, quiet ends."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dcsurgery
from dcsurgery.errors import PlanError

from .conftest import Run

# Runs the command line with a conversion that writes a file, says so, and then waits.
WAITING = """
import sys, time
import dcsurgery.surgery.convert as convert
def wait(checkpoint, plan, folder, *rest, **options):
    (folder / "half").write_text("half")
    print("ready", file=sys.stderr, flush=True)
    time.sleep(120)
convert.write_folder = wait
from dcsurgery.cli.main import main
main()
"""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_command_the_help_is_printed(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    for name in ("inspect", "convert", "verify", "demo", "architectures"):
        assert f"\n  {name} " in result.stdout
    # No command's summary is cut off.
    assert "..." not in result.stdout.partition("Commands:")[2]


def test_version_is_the_packages(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"dcsurgery {dcsurgery.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["operate"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["inspect", "a", "--wrong"],
        ["convert", "a", "-o", "b", "--groups", "two"],
        ["convert", "a"],
        ["verify"],
    ],
)
def test_wrong_usage_exits_2_and_keeps_stdout_clean(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: dcsurgery" in result.stderr


@pytest.mark.parametrize("command", ["inspect", "convert", "verify"])
@pytest.mark.parametrize("as_json", [False, True])
def test_an_expected_failure_exits_1_with_message_and_hint(
    run: Run, tmp_path: Path, command: str, as_json: bool
) -> None:
    options = ["-o", tmp_path / "out"] if command == "convert" else []
    result = run(command, tmp_path / "nothing", *options, *(["--json"] if as_json else []))
    assert result.exit_code == 1
    first, second = result.stderr.strip().split("\n")
    assert first.startswith("error: ") and str(tmp_path / "nothing") in first
    assert second.startswith("hint: ")
    if as_json:
        answer = json.loads(result.stdout)
        assert answer["schema_version"] == 1
        assert f"error: {answer['error']['message']}" == first
        assert f"hint: {answer['error']['hint']}" == second
    else:
        assert result.stdout == ""


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Make inspect raise whatever is given."""

    def call(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("dcsurgery.surgery.inspection.inspect_checkpoint", fail)

    return call


def test_an_unforeseen_exception_is_called_a_bug_and_shows_no_traceback(
    run: Run, broken: Run
) -> None:
    broken(KeyError("weights"))
    result = run("inspect", "model")
    assert result.exit_code == 1
    assert "bug in dcsurgery" in result.stderr and "KeyError: 'weights'" in result.stderr
    assert "DCSURGERY_DEBUG=1" in result.stderr and "report" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [KeyError("weights"), PlanError("no", hint="yes")])
def test_debugging_shows_the_traceback_as_well(
    run: Run, broken: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setenv("DCSURGERY_DEBUG", "1")
    broken(error)
    result = run("inspect", "model")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "in fail" in result.stderr
    assert "\nhint: " in result.stderr


def test_a_failing_disk_is_not_called_a_bug(run: Run, broken: Run) -> None:
    broken(PermissionError(13, "Permission denied", "/models/config.json"))
    result = run("inspect", "model")
    assert result.exit_code == 1
    assert "error: Permission denied: /models/config.json\nhint: " in result.stderr


def test_names_out_of_a_checkpoint_cannot_command_the_terminal(run: Run, broken: Run) -> None:
    broken(PlanError("tensor \x1b[2Jevil\r", hint="\x07"))
    result = run("inspect", "model")
    assert "tensor \\x1b[2Jevil\\r" in result.stderr
    assert not set("\x1b\x07\r") & set(result.stderr)


def start(model: Path, output: Path) -> subprocess.Popen[str]:
    """Start a conversion and wait until it has written half."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "convert", str(model), "-o", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    assert list(output.parent.iterdir())  # the staging folder
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_conversion_leaves_nothing_and_says_so_by_its_code(
    model: Path, tmp_path: Path, number: int, code: int
) -> None:
    process = start(model, tmp_path / "out")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_early_ends_it_quietly(model: Path, options: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "dcsurgery", "inspect", str(model), *options],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["--help"]])
def test_output_that_cannot_be_written_is_an_error(
    spawn: Run, model: Path, tmp_path: Path, arguments: list[str]
) -> None:
    with (tmp_path / "full").open("w") as full:
        done = spawn(
            *arguments,
            *([model] if "inspect" in arguments else []),
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
            # No file may grow: every write to one fails.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
    assert done.returncode == 1
    assert "File too large" in done.stderr and "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_streams_are_no_reason_to_fail(model: Path) -> None:
    command = f'"{sys.executable}" -m dcsurgery inspect "{model}" >&- 2>&-'
    assert subprocess.run(command, shell=True).returncode == 0


def test_a_terminal_without_unicode_gets_ascii(spawn: Run, model: Path) -> None:
    done = spawn("inspect", model, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "-> W  [24, 16]" in done.stdout and "\\u" not in done.stdout


def test_python_m_runs_the_same_program(spawn: Run) -> Any:
    done = spawn("--version")
    assert (done.returncode, done.stdout) == (0, f"dcsurgery {dcsurgery.__version__}\n")
