"""A tiny original Mini-Gemini as its authors' code saves it, its towers in folders beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from dcsurgery.tiny.mini_gemini import mini_gemini_config
from dcsurgery.tiny.original_mini_gemini import write_original_mini_gemini, write_towers
from dcsurgery.tiny.published import BESIDE


def write_tiny_published_mini_gemini(folder: Path, *, depth: int = 24) -> Path:
    """Write an original Mini-Gemini with tokenizer and towers; return `folder`."""
    beside = folder.parent / BESIDE
    shutil.rmtree(beside, ignore_errors=True)
    write_towers(beside, mini_gemini_config(depth=depth))
    return write_original_mini_gemini(folder, depth=depth, towers=f"../{BESIDE}")
