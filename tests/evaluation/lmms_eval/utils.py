"""Functions that the task's YAML names. lmms-eval imports this file by its path."""

from __future__ import annotations

from typing import Any


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Return the pictures of a question."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc: dict[str, Any]) -> str:
    """Return the words of a question."""
    return f"{doc['question']}\nAnswer with one word."


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return 1 for the reference answer, else 0."""
    return {"exact": float(results[0].strip().lower() == doc["answer"].lower())}
