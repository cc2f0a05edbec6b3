"""Numbers of a card that no report holds."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dcsurgery.publishing.card import CITATION, PAPER

# A whole number or decimal, not part of a word, a digest, a version or a name.
NUMBER = re.compile(r"(?<![\w.\-/])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w./]*\w)")


def numbers(text: str) -> set[str]:
    """Every number of a text, thousands' commas dropped."""
    return {found.rstrip(",").replace(",", "") for found in NUMBER.findall(text)}


def unheld(card: str, reports: Iterable[str]) -> set[str]:
    """The numbers of a card that are neither in a report nor one of its numbers rounded."""
    said = card.replace(CITATION, "").replace(PAPER, "")
    said = re.sub(r"https?://\S+", "", said)
    held: set[str] = set()
    for report in reports:
        for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?", report):
            held |= {number, f"{float(number):.4g}"}
    return {number for number in numbers(said) if number not in held}
