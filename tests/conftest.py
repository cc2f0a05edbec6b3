"""Tests are offline, single-threaded and quiet, whatever the machine's settings."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.architectures.cases import Case

# A job in a shell's background ignores Ctrl-C, under nohup also that the terminal is closed; so
# would every process the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before anything imports huggingface_hub: it reads these once.
_home = tempfile.TemporaryDirectory(prefix="dcsurgery-tests-")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=_home.name,
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
)
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_HUB_CACHE", None)


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> Iterator[None]:
    """Sums in one order: bit equality is asserted."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    _home.cleanup()


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """Set aside what was imported: verify collects garbage, and would visit all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with a CLIP tower, one weight file. Do not write into it."""
    from dcsurgery.tiny import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("tiny") / "clip", "clip")


@pytest.fixture(scope="session")
def tiny_deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with the depth and shards of llava-1.5-7b. Do not write into it."""
    from dcsurgery.tiny import write_tiny_llava

    folder = tmp_path_factory.mktemp("tiny") / "my-llava"
    return write_tiny_llava(folder, "clip", depth=24, image_size=32, shards=3)


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with a SigLIP tower, three weight files. Do not write into it."""
    from dcsurgery.tiny import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("tiny") / "siglip", "siglip", shards=3)


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA in its original format, pickled, its tower in a folder of its own."""
    from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower

    folder, sizes = tmp_path_factory.mktemp("tiny"), OriginalSizes(depth=4)
    tower = write_tower(folder / "clip", sizes, pickled=True)
    return write_original_llava(folder / "llava", sizes, str(tower), inside=False, pickled=True)


@pytest.fixture(scope="session")
def tiny_pixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with a Pixtral tower, one weight file. Do not write into it."""
    from dcsurgery.tiny import write_tiny_llava

    return write_tiny_llava(tmp_path_factory.mktemp("tiny") / "pixtral", "pixtral")


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """One tiny model of each family with a connector planned, by name. Do not write into them."""
    from tests.architectures.families import one_of_each

    return one_of_each(tmp_path_factory.mktemp("families"))
