"""Every block on every page: commands parse, Python compiles, and what can run here runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
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
    "--nproc-per-node", "--nnodes", "--strict", "--help", "--towers",
    "--max-model-len", "--use_fsdp", "--fsdp_version", "--fsdp_auto_wrap_policy",
}  # fmt: skip
OTHERS = {"accelerate", "cd", "cp", "git", "hf", "mkdocs", "mypy", "pytest", "ruff"}
ELSEWHERE = re.compile(r"needs: \S|run by: (\S+)|output")
BLOCKS = [
    pytest.param(page, block, id=f"{page.name}:{block.line}")
    for page in PAGES.values()
    for block in page.blocks
]


@cache
def program() -> Any:
    """The command line as one object."""
    return typer.main.get_command(app)


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words after `dcsurgery` name, and the words left for it."""
    command = program()
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Parse a command line's words after `dcsurgery`. Raises a usage error, as the program does."""
    command, rest = find_command(words)
    command.make_context("dcsurgery", rest)


def check_command(words: list[str]) -> None:
    """Check what can be known of a command line without running it."""
    if "dcsurgery" in words[:5] and "clone" not in words:
        parse(words[words.index("dcsurgery") + 1 :])
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert extra in project["optional-dependencies"], words
    elif words[0] == "python" and words[1:2] == ["-m"] and words[2].startswith("tests."):
        assert importlib.util.find_spec(words[2]), words
    else:
        assert words[0] in OTHERS | {"python"}, words


def mentioned(script: str) -> set[str]:
    """The words of a script, programs without their folders."""
    return {word.rpartition("/")[2] for word in re.findall(r"[\w./*$-]+", script)}


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_block_says_what_the_program_understands(page: Page, block: Block) -> None:
    for words in block.commands if block.language == "bash" else ():
        check_command(words)
    for script in block.scripts:
        compile(script, f"{page.name}:{block.line}", "exec")
    if block.language == "json":
        json.loads(block.text)
    if block.mark:
        found = ELSEWHERE.match(block.mark)
        assert found, block.mark
        if found[1]:
            runner = (ROOT / found[1]).read_text(encoding="utf-8")
            for words in block.commands if page.name not in runner else ():
                named = {word for word in words[:2] if not word.startswith("-")}
                assert words[0] in {"cd", "git"} or named <= mentioned(runner), words


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_options_in_the_text_exist(page: Page) -> None:
    known = set(ALIEN)
    todo = [program()]
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    for code in re.findall(r"`([^`\n]+)`", page.prose):
        if code.startswith(("accelerate ", "transformers ", "python -m tests.")):
            continue
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", code)) <= known, code
        if code.startswith("dcsurgery "):
            command, rest = find_command(code.split()[1:])
            assert command is not program() or not rest, code


def normalised(text: str, place: Path) -> str:
    """Replace what differs from run to run or from CPU to CPU."""
    text = re.sub(r" +$", "", text.replace(str(place), "/home/me"), flags=re.MULTILINE)
    text = re.sub(r"in \d+\.\d+ s", "in 0.00 s", text)
    return re.sub(r"max difference \S+ *", "max difference 0 ", text).strip("\n")


def pattern(stated: str) -> str:
    """The regular expression of a stated output: a line `...` stands for any lines."""
    lines = normalised(stated, Path("/home/me")).split("\n")
    return "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in lines)


Shell = Callable[[str, str], str]


@pytest.fixture
def shell(tmp_path: Path, tiny_deep: Path) -> Shell:
    """Run bash or Python in a folder that holds what pages name; return what it prints."""
    place = write_workplace(tmp_path / "work", tiny_deep)
    write_originals(place)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("python", ""), ("dcsurgery", " -m dcsurgery")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}

    def run(language: str, text: str) -> str:
        start = ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable]
        done = subprocess.run(
            [*start, "-c", text], cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (text, done.stdout[-1000:], done.stderr[-3000:])
        return normalised(done.stdout, place)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if page.runs])
def test_the_blocks_of_a_page_run_in_order(name: str, shell: Shell) -> None:
    page, said = PAGES[name], ""
    for line in page.setup:
        shell("bash", line)
    for block in page.blocks:
        if block.runs:
            said = shell(block.language, block.text)
        elif block.mark == "output":
            assert re.fullmatch(pattern(block.text), said + "\n"), (block, said)
