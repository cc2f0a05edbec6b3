"""The pages people read, and the fenced blocks on them.

A block runs as it stands unless a comment on the line before it says otherwise:

    <!-- needs: network -->              it cannot run in a test; its commands are parsed
    <!-- run by: tests/some_test.py -->  who runs it instead
    <!-- output -->                      what the block before it prints; `...` stands for any lines

Anywhere on a page, `<!-- before: COMMAND -->` runs first, so that the blocks find what they name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
HEREDOC = re.compile(r"<<'(\w+)'\n(.*?)^\1$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, what it says, and its mark ("" if it runs as it stands)."""

    line: int
    language: str
    text: str
    mark: str

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") and not self.mark

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line of a bash block, without comments."""
        text = HEREDOC.sub("", self.text).replace("\\\n", " ")
        parts = [part for line in text.splitlines() for part in line.split(" && ")]
        return [words for part in parts if (words := shlex.split(part, comments=True))]

    @property
    def scripts(self) -> list[str]:
        """The Python code of the block."""
        if self.language == "python":
            return [self.text]
        return [body for _, body in HEREDOC.findall(self.text)] if self.language == "bash" else []


@dataclass(frozen=True)
class Page:
    """A Markdown file of the repository."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return [
            Block(
                self.text.count("\n", 0, found.start()) + 1,
                *found.group("language", "text"),
                found["mark"] or "",
            )
            for found in FENCE.finditer(self.text)
        ]

    @property
    def runs(self) -> bool:
        return any(block.runs for block in self.blocks)

    @property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return FENCE.sub("", self.text)

    @property
    def setup(self) -> list[str]:
        return re.findall(r"^<!-- before: (.+) -->$", self.text, re.M)

    def section(self, title: str) -> str:
        """What stands below a heading, up to the next one of its level."""
        found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", self.text, re.M | re.S)
        assert found, (self.name, title)
        return found[2]


def pages() -> Iterator[Page]:
    """Every page for people: the top level's and those in docs/ and recipes/."""
    for pattern in ("*.md", "docs/*.md", "recipes/*.md"):
        yield from map(Page, sorted(ROOT.glob(pattern)))


PAGES = {page.name: page for page in pages()}


# Their keys are data, or documents that are described elsewhere.
OPEN = {
    "adapter", "by_type", "against_first_by_type", "loaders", "plan", "recipe", "recipes",
    "settings", "skipped", "towers", "versions", "layouts", "unread_pictures", "columns",
}  # fmt: skip


def keys(value: Any) -> Iterator[str]:
    """Every key of a JSON value, at any depth above the open ones."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item)
    if isinstance(value, dict):
        yield from value
        for name, inner in value.items():
            if name not in OPEN:
                yield from keys(inner)
