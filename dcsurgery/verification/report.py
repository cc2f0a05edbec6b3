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


def judge(name: str, problems: list[str], measured: str, limit: str) -> Check:
    """Return a check that passed when there are no problems; its detail names the first five."""
    detail = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if problems[5:] else "")
    return Check(name, not problems, measured, limit, detail)
