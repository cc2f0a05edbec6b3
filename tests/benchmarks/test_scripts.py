"""Every benchmark can be started: what it imports is still there."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import tests.benchmarks
import tests.demo.full

SCRIPTS = [
    found.name
    for package in (tests.benchmarks, tests.demo.full)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.split(".")[-1].startswith("test_")
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_imports(script: str) -> None:
    importlib.import_module(script)
