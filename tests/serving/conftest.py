"""Shared by the tests of serving: a LLaVA that llama.cpp serves rightly, and a trained one."""

from __future__ import annotations

from pathlib import Path

import pytest

import dcsurgery
from dcsurgery.tiny import write_tiny_llava
from tests.surgery import random_matrix, write_delta


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with a SigLIP tower. Do not write into it."""
    return write_tiny_llava(tmp_path_factory.mktemp("served") / "base", "siglip", seed=8)


@pytest.fixture(scope="package")
def trained(base: Path) -> Path:
    """A delta of it with a random matrix. Do not write into it."""
    plan = dcsurgery.plan(base, form="delta").plan
    write_delta(base, base.with_name("trained"), random_matrix(plan))
    return base.with_name("trained")
