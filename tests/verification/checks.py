"""Names of the structure checks, and which of them fail."""

from __future__ import annotations

import json
from pathlib import Path

from dcsurgery.verification import Report
from dcsurgery.verification.pair import open_pair
from dcsurgery.verification.structure import structure_checks

PROJECTOR = "multi_modal_projector.linear_1.weight"
BIAS = "multi_modal_projector.linear_1.bias"
NORM = "language_model.model.norm.weight"
BASE, DELTA, LAYOUT = "base is the plan's base", "connector is as planned", "file layout"
OTHERS, CHANGED = "every other tensor", "changed tensors are as planned"
CONFIG, SIDE = "config.json", "side files"


def failed(report: Report) -> set[str]:
    """Names of the failed checks; the report must say the same in all its forms."""
    bad = {check.name for check in report.checks if not check.passed}
    values = json.loads(json.dumps(report.to_dict()))
    assert report.passed == (not bad) == values["passed"]
    assert {item["name"] for item in values["checks"] if not item["passed"]} == bad
    assert all(check.detail for check in report.checks if not check.passed)
    return bad


def structure(folder: Path, against: Path | None = None, *, deep: bool = False) -> set[str]:
    """Names of the failed structure checks."""
    return {c.name for c in structure_checks(open_pair(folder, against), deep=deep) if not c.passed}
