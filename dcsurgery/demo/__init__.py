"""The demo: tiny LLaVAs that were really trained, retrofitted and compared in minutes."""

from __future__ import annotations

from dcsurgery.demo.story import run_demo

__all__ = ["run_demo"]
