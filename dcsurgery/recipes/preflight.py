"""What would stop a run hours after its start, asked before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcsurgery.errors import RequestError
from dcsurgery.recipes.data_check import QUICK, check_data
from dcsurgery.recipes.schema import Recipe
from dcsurgery.recipes.steps import Step


def check_start(recipe: Recipe, steps: Sequence[Step], data: Path) -> None:
    """Raise RequestError that names every reason for which one of the steps to do would fail.

    The data is looked at in samples.
    """
    found = check_data(recipe, data, steps={step.name for step in steps}, sample=QUICK)
    if found.problems:
        raise RequestError(
            "; ".join(f"{step}: {why}" for step, why in found.problems.items()),
            hint=f"dcsurgery recipe data {recipe.name} --data-dir {data}",
        )
