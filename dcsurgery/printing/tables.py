"""Tables as lines of text: cells wrap between words, and nothing is ever cut off."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

GAP = "  "


def wrap(text: str, width: int) -> list[str]:
    """Return the lines of a text at a width; words stay whole, indents carry over."""
    lines: list[str] = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line,
            max(width, 1),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return lines


def lay_out(rows: Sequence[Sequence[str]], kinds: str, width: int) -> list[str]:
    """Return the lines of a table.

    `kinds` has a letter per column: "l" may wrap, "w" is kept whole, "r" is kept whole and flush
    right. The table is wider than `width` only where its words are.
    """
    widths = _widths(rows, kinds, width)
    lines = []
    for row in rows:
        cells = [wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
        for index in range(max(map(len, cells))):
            parts = []
            for cell, kind, size in zip(cells, kinds, widths, strict=True):
                text = cell[index] if index < len(cell) else ""
                parts.append(text.rjust(size) if kind == "r" else text.ljust(size))
            lines.append(GAP.join(parts).rstrip())
    return lines


def _widths(rows: Sequence[Sequence[str]], kinds: str, width: int) -> list[int]:
    """Give every column its longest line, then take from the widest that may wrap."""
    columns = list(zip(*rows, strict=True))
    widths = [max(len(line) for cell in cells for line in cell.split("\n")) for cells in columns]
    least = [
        max(len(word) for cell in cells for word in cell.split() or [""]) if kind == "l" else whole
        for cells, kind, whole in zip(columns, kinds, widths, strict=True)
    ]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        slack = [size - small for size, small in zip(widths, least, strict=True)]
        if not any(slack):
            break
        widest = max(range(len(widths)), key=lambda i: (slack[i] > 0, widths[i]))
        widths[widest] -= 1
    return widths
