"""`import dcsurgery` leaves transformers alone: every supported class imports after it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dcsurgery.architectures import available

OWN = {"MiniGeminiForConditionalGeneration"}


def imported(name: str) -> str:
    """Return what a fresh process says that imports dcsurgery and then a class of transformers."""
    code = f"import sys, dcsurgery; from transformers import {name}; print({name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr[-300:]


@pytest.mark.slow
def test_every_supported_class_imports_after_dcsurgery() -> None:
    names = sorted({name for family in available() for name in family.class_names} - OWN)
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(imported, names), strict=True))
    assert found == {name: name for name in names}


def test_dcsurgery_puts_nothing_into_the_import_system() -> None:
    code = (
        "import sys; before = list(sys.meta_path); import dcsurgery; assert sys.meta_path == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_registering_is_asked_for() -> None:
    code = (
        "import dcsurgery; from transformers import AutoConfig, CONFIG_MAPPING\n"
        "assert 'mini_gemini' not in CONFIG_MAPPING\n"
        "dcsurgery.register(); dcsurgery.register()\n"
        "assert AutoConfig.for_model('mini_gemini').model_type == 'mini_gemini'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
