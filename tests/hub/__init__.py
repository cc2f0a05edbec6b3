"""A small Hub on localhost: real huggingface_hub clients read models from it and publish to it."""

from __future__ import annotations

from tests.hub.faults import Fault
from tests.hub.server import running_hub
from tests.hub.state import Hub, Repository, Request, User

__all__ = ["Fault", "Hub", "Repository", "Request", "User", "running_hub"]
