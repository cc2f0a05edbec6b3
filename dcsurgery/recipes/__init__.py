"""Whole reproductions from one file: read, check, run, resume, lock."""

from __future__ import annotations

from dcsurgery.recipes.catalog import load_recipe, shipped
from dcsurgery.recipes.runner import RecipeRun, run_recipe
from dcsurgery.recipes.schema import Recipe

__all__ = ["Recipe", "RecipeRun", "load_recipe", "run_recipe", "shipped"]
