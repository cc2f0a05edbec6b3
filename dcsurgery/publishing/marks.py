"""How a card that `dcsurgery push` wrote is recognised."""

from __future__ import annotations

CARD = "README.md"
BEGIN = "<!-- dcsurgery: from here to the end mark this text is written by `dcsurgery push` -->"
END = "<!-- dcsurgery: end -->"
