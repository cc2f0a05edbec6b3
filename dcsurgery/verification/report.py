"""Checks and their report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One check: what was measured, against which limit; `detail` says more when it failed."""

    name: str
    passed: bool
    measured: str
    limit: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one verification."""

    output: str
    base: str
    form: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when every check passed."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        return {"schema_version": 1, "passed": self.passed, **asdict(self)}
