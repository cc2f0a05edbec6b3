"""Misbehaviour on demand: what a real network and a real server do now and then."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["status", "reset", "hang", "short", "lost", "call"]


@dataclass
class Fault:
    """Strikes the first `times` requests whose method and path match.

    status: answers `status` without looking; reset: closes the connection after `after` bytes of
    the request's body; hang: answers nothing for `seconds`, then closes; short: the answer's body
    stops half way; lost: the request is carried out and the connection closed instead of an answer;
    call: `action` is run before the request is carried out.
    """

    method: str
    path: str
    kind: Kind
    times: int = 1
    status: int = 500
    after: int = 0
    seconds: float = 5.0
    action: Callable[[], object] = lambda: None

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.kind} {self.status}"

    def strikes(self, method: str, path: str) -> bool:
        """Return whether this request is hit; every hit uses up one of `times`."""
        if self.times < 1 or method != self.method or not re.search(self.path, path):
            return False
        self.times -= 1
        return True
