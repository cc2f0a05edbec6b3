"""Whole reproductions from one file: read, check, run, resume, lock."""

from __future__ import annotations

from dcsurgery.recipes.benchmarks import convert_benchmark
from dcsurgery.recipes.catalog import load_recipe, shipped
from dcsurgery.recipes.data_check import check_data
from dcsurgery.recipes.pin import pin_recipe
from dcsurgery.recipes.runner import RecipeRun, run_recipe
from dcsurgery.recipes.schema import Recipe

__all__ = [
    "Recipe",
    "RecipeRun",
    "check_data",
    "convert_benchmark",
    "load_recipe",
    "pin_recipe",
    "run_recipe",
    "shipped",
]
