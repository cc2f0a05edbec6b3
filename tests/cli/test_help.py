"""Help that is true: every option explained, every example runs as it stands."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.docs.workplace import write_workplace
from tests.training.data import write_data

from .conftest import Run

COMMANDS = (
    "inspect",
    "convert",
    "verify",
    "finetune",
    "eval",
    "ask",
    "export",
    "push",
    "demo",
    "architectures",
)


def examples(text: str) -> list[str]:
    """The command lines under "Examples:" at the end of a help text."""
    _, found, block = text.partition("Examples:\n")
    assert found
    lines = [line.strip() for line in block.strip().split("\n")]
    assert lines and all(line.startswith("dcsurgery ") for line in lines)
    return lines


@pytest.fixture(scope="module")
def workplace(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the models and the picture of the examples are tiny real ones."""
    place = write_workplace(tmp_path_factory.mktemp("examples"), model)
    shutil.copytree(model, place / "my-llava")
    write_data(place / "data")
    return place


def pretend_to_push(model: Path, repo_id: str, **options: Any) -> Any:
    """Take what push_checkpoint takes, and nothing else."""
    from dcsurgery.publishing.push import PushResult, push_checkpoint

    inspect.signature(push_checkpoint).bind(model, repo_id, **options)
    return PushResult(repo_id, "main", "url", (), True, (), options["dry_run"])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_of_the_help_runs(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(workplace)
    if command in ("verify", "finetune", "eval", "ask"):
        run("convert", "my-llava", "-o", "llava-dci")
    if command == "export":
        shutil.rmtree(workplace / "my-llava-delta", ignore_errors=True)
        run("convert", "my-llava", "-o", "my-llava-delta", "--form", "delta")
    if command == "":
        shutil.rmtree(workplace / "llava-dci", ignore_errors=True)
    told: list[Path] = []
    # The whole demo has a test of its own, and so has publishing.
    monkeypatch.setattr("dcsurgery.demo.run_demo", lambda work_dir, say: told.append(work_dir))
    monkeypatch.setattr("dcsurgery.publishing.push.push_checkpoint", pretend_to_push)
    for line in examples(run(*command.split(), "--help").stdout):
        result = run(*shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.stderr)
    shutil.rmtree(workplace / "llava-dci", ignore_errors=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_at_80_columns(run: Run, command: str) -> None:
    text = run(command, "--help").stdout
    assert max(map(len, text.split("\n"))) <= 80
    options = re.findall(r"^  (?:-\w, )?(--[a-z-]+)(.*)$", text, re.MULTILINE)
    assert options
    for name, rest in options:
        assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", name)
        # Help stands beside the option, or starts the next line when there is no room.
        assert re.search(r"\s{2,}\S", rest) or re.search(rf"{name}.*\n\s{{10,}}\S", text)


def test_defaults_are_stated(run: Run) -> None:
    text = " ".join(run("convert", "--help").stdout.split())
    for stated in ("[default: dci]", "[default: 2]", "[default: preserve]", "[default: 0]"):
        assert stated in text
    assert "Default: stock where" in text and "Default: the newest." in text


def test_every_connector_kind_is_in_the_help(run: Run) -> None:
    from dcsurgery.connectors import KINDS

    text = " ".join(run("convert", "--help").stdout.split())
    for kind, summary in KINDS.items():
        assert f"{kind}: {summary}" in text
