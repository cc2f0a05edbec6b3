"""Keep this machine's folders out of what is published."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# Two components at least, and nothing before that would make it a URL, an id or a division.
_PATH = re.compile(r"(?<![\w:/.\\])(?:file://)?(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:*?\"'<>|,;()]+){2,}")


def without_paths(value: Any) -> Any:
    """Return JSON values with every absolute path cut to its last component."""
    if isinstance(value, dict):
        return {_cut(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return _cut(value) if isinstance(value, str) else value


def _cut(text: str) -> str:
    for kind in (PurePosixPath, PureWindowsPath):
        if "\n" not in text and kind(text).is_absolute():
            return kind(text).name or text
    return _PATH.sub(lambda found: PureWindowsPath(found[0]).name, text)
