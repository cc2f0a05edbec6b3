"""The small Hub of tests/hub under its first name."""

from __future__ import annotations

from tests.hub import Hub, Repository, Request, running_hub

__all__ = ["Hub", "Repository", "Request", "running_hub"]
