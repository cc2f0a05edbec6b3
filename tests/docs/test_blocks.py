"""Every block on every page: commands parse, Python compiles, and what can run here runs."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from dcsurgery.cli.main import app
from tests.docs.pages import PAGES, ROOT, Block, Page
from tests.docs.workplace import write_originals, write_workplace

# Options of other programs that the pages name.
ALIEN = {
    "--model-impl", "--model", "--model_args", "--verbosity", "--batch_size", "--force_simple",
    "--nproc-per-node", "--strict", "--help",
}  # fmt: skip
OTHERS = {"cd", "cp", "git", "hf", "mkdocs", "mypy", "pytest", "ruff"}
ELSEWHERE = re.compile(r"needs: \S|run by: (\S+)|output")
BLOCKS = [
    pytest.param(page, block, id=f"{page.name}:{block.line}")
    for page in PAGES.values()
    for block in page.blocks
]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words after `dcsurgery` name, and the words left for it."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Parse a command line's words after `dcsurgery`. Raises a usage error, as the program does."""
    command, rest = find_command(words)
    command.make_context("dcsurgery", rest)


def check_command(words: list[str]) -> None:
    """Check what can be known of a command line without running it."""
    program = words[0]
    if "dcsurgery" in words[:5] and "clone" not in words:
        parse(words[words.index("dcsurgery") + 1 :])
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert extra in project["optional-dependencies"], words
    elif program == "python" and words[1:2] == ["-m"] and words[2].startswith("tests."):
        assert importlib.util.find_spec(words[2]), words
    else:
        assert program in OTHERS | {"python"}, words


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_block_says_what_the_program_understands(page: Page, block: Block) -> None:
    for words in block.commands if block.language == "bash" else ():
        check_command(words)
    for script in block.scripts:
        compile(script, f"{page.name}:{block.line}", "exec")
    if block.mark:
        found = ELSEWHERE.match(block.mark)
        assert found, block.mark
        assert not found[1] or (ROOT / found[1]).is_file(), block.mark


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_options_in_the_text_exist(page: Page) -> None:
    app_commands: Any = typer.main.get_command(app)
    known = set(ALIEN)
    todo = [app_commands]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    for code in re.findall(r"`([^`\n]+)`", page.prose):
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", code)) <= known, code
        if code.startswith("dcsurgery "):
            command, rest = find_command(code.split()[1:])
            assert command is not app_commands or not rest, code


def outputs(page: Page) -> dict[int, Block]:
    """The stated output of a block, by the block's place on its page."""
    blocks = page.blocks
    return {
        place: after
        for place, (block, after) in enumerate(itertools.pairwise(blocks))
        if block.runs and after.mark == "output"
    }


def normalised(text: str, place: Path) -> str:
    """Replace what differs from run to run or from CPU to CPU."""
    text = text.replace(str(place), "/home/me")
    text = re.sub(r"in \d+\.\d+ s", "in 0.00 s", text)
    return re.sub(r"max difference \S+ *", "max difference 0 ", text)


def pattern(stated: str) -> str:
    """The regular expression of a stated output: a line `...` stands for any lines."""
    parts = normalised(stated, Path("/home/me")).split("\n...\n")
    return r"\n(?:.*\n)*?".join(re.escape(part.strip("\n")) for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES.values() if any(block.runs for block in page.blocks)],
    ids=lambda page: page.name,
)  # fmt: skip
def test_the_blocks_of_a_page_run_in_order(page: Page, tmp_path: Path, tiny_deep: Path) -> None:
    place = write_workplace(tmp_path / "work", tiny_deep)
    if "liuhaotian/" in page.text:
        write_originals(place)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("python", ""), ("dcsurgery", " -m dcsurgery")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
    }
    stated = outputs(page)
    steps = [(None, ["bash", "-c", line]) for line in page.setup]
    for number, block in enumerate(page.blocks):
        if block.runs and block.language == "bash":
            steps.append((number, ["bash", "-euo", "pipefail", "-c", block.text]))
        elif block.runs:
            steps.append((number, [sys.executable, "-c", block.text]))
    for at, command in steps:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (
            page.name,
            command[-1],
            done.stdout[-1000:],
            done.stderr[-3000:],
        )
        if at in stated:
            found = normalised(done.stdout.strip("\n"), place)
            assert re.fullmatch(pattern(stated[at].text), found), (command[-1], found)
