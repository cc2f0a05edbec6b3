"""Tiny models built offline: names and files of real checkpoints, for the demo and the tests."""

from __future__ import annotations

from dcsurgery.tiny.llava import llava_config, write_tiny_llava

__all__ = ["llava_config", "write_tiny_llava"]
