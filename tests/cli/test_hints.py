"""Every command line that is printed, in hints and elsewhere, is one that the parser takes."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from dcsurgery.cli.main import app

PACKAGE = Path(__file__).parents[2] / "dcsurgery"
# Which commands a module's errors reach; an option in a hint must be one of all of them, or of a
# command that the hint names. The longest path that fits.
REACH = {
    "evaluation/ask": "ask", "evaluation/video": "ask", "evaluation": "eval",
    "evaluation/generation": "eval, ask", "data": "eval, finetune",
    "data/batches": "finetune", "training": "finetune", "publishing": "push", "demo": "demo",
    "recipes": "recipe run", "surgery/export": "export", "cli/ask": "ask",
    "connectors": "convert, finetune", "features": "convert, finetune",
    "surgery/plan": "convert, finetune", "surgery/convert": "convert, finetune",
    "surgery/paper_config": "convert, export", "surgery/paper_form": "convert",
    "surgery/paper_mini_gemini": "convert, export", "surgery": "convert",
    "architectures": "convert", "originals": "convert, inspect", "checkpoint": "convert",
    "loading": "ask", "probing": "probe", "trials": "trial", "serving": "verify",
    "serving/gguf": "export", "cli/verify": "verify", "recipes/benchmarks": "recipe data",
    "cli/recipe_data": "recipe data", "recipes/published": "recipe data",
    "recipes/pin": "recipe pin", "cli/recipe": "recipe run",
}  # fmt: skip
# Options that are followed by a number, which text_of makes X.
NUMBERS = {"--processes"}
# What other programs are told.
OTHERS = re.compile(r"`python [^`]*`|accelerate launch[^,]*|accelerate's --\w+")


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, found in inner.items():
        yield from leaves(found, f"{name} {word}".strip())


COMMANDS = dict(leaves(get_command(app)))
OPTIONS = {
    name: {o for item in found.params for o in (*item.opts, *item.secondary_opts)} | {"--help"}
    for name, found in COMMANDS.items()
}
NAMES = "|".join(sorted(COMMANDS, key=len, reverse=True))


def text_of(node: ast.expr) -> list[str]:
    """The texts an expression can be, with X for what is filled in."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        parts = (text_of(v)[0] if isinstance(v, ast.Constant) else "X" for v in node.values)
        return ["".join(parts)]
    if isinstance(node, ast.BinOp):
        return [a + b for a in text_of(node.left) for b in text_of(node.right)]
    if isinstance(node, ast.IfExp):
        return [*text_of(node.body), *text_of(node.orelse)]
    return ["X"]


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").as_posix(), ast.parse(path.read_text())


def hints() -> list[tuple[str, str]]:
    return [
        (f"{module}:{node.lineno}", text)
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "hint"
        for text in text_of(keyword.value)
    ]


def printed() -> list[tuple[str, str]]:
    """Every text in the package that shows a command, docstrings apart."""
    found = []
    for module, tree in modules():
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in docs | inner:
                text = text_of(node)[0]
                if re.search(rf"\bdcsurgery ({NAMES})\b", text):
                    found.append((f"{module}:{node.lineno}", text))
    return found


def lines(text: str) -> Iterator[tuple[str, list[str], bool]]:
    """Yield command, arguments and whether it is whole: one in backticks may be a mention."""
    for quoted in re.findall(rf"`dcsurgery ((?:{NAMES})\b[^`]*)`", text):
        yield from split(quoted, whole=False)
    for line in re.findall(rf"(?:^|[\n:$] *)dcsurgery ((?:{NAMES})\b[^\n`;]*)", text):
        yield from split(line, whole=True)


def split(line: str, *, whole: bool) -> Iterator[tuple[str, list[str], bool]]:
    name = next(n for n in sorted(COMMANDS, key=len, reverse=True) if line.startswith(n))
    yield name, shlex.split(line[len(name) :].rstrip(".")), whole


def parse(name: str, arguments: list[str]) -> None:
    """Parse as a shell's words; raises what the parser raises."""
    arguments = ["1" if before in NUMBERS else word for before, word in pairwise(["", *arguments])]
    COMMANDS[name].make_context(name, list(arguments), resilient_parsing=False)


@pytest.mark.parametrize(("place", "text"), printed(), ids=lambda value: str(value)[:40])
def test_a_command_line_that_is_printed_parses(place: str, text: str) -> None:
    for name, arguments, whole in lines(text):
        if whole:
            parse(name, arguments)
        for word in arguments:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in OPTIONS[name], (place, name, word)


def test_the_lines_that_this_looks_for_are_found() -> None:
    texts = " | ".join(text for _, text in printed())
    assert "dcsurgery verify" in texts and "dcsurgery recipe run tiny" in texts
    assert sum(whole for _, text in printed() for _, _, whole in lines(text)) > 30
    with pytest.raises(Exception, match="No such option: --image"):
        parse("ask", ["OUT", "--image", "a.png", "question"])
    with pytest.raises(Exception, match="Missing parameter: data"):
        parse("eval", ["OUT"])


@pytest.mark.parametrize(
    ("place", "text"),
    [item for item in hints() if "--" in item[1] or " -o" in item[1]],
    ids=lambda value: str(value)[:60],
)
def test_an_option_in_a_hint_is_one_of_the_commands_that_say_it(place: str, text: str) -> None:
    module = place.partition(":")[0]
    reach = max((key for key in REACH if module.startswith(key)), key=len, default="")
    assert reach, f"say in REACH which commands {module} is used by"
    text = OTHERS.sub("", text)
    said = {name for name in COMMANDS if re.search(rf"\b{name}\b", text)}
    for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", text):
        option = option.removesuffix("-") if option.endswith("-") else option
        everywhere = all(option in OPTIONS[name] for name in REACH[reach].split(", "))
        named = any(option in OPTIONS[name] for name in said)
        prefix = option in ("--lora",) or "X" in text[text.index(option) :][: len(option) + 2]
        assert everywhere or named or prefix, f"{place}: {option} in {text!r}"
