"""Stock checkpoints in older transformers, without dcsurgery: same logits as the base.

Set DCSURGERY_OLD_TRANSFORMERS to folders made by `pip install --no-deps --target` (`.ci/run` does).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.llava_next import write_tiny_llava_next
from tests.architectures.cases import load
from tests.architectures.inputs import llava_inputs, mllama_inputs
from tests.architectures.tiles import mixed_inputs, tile_inputs
from tests.closeness import assert_near
from tests.surgery import random_matrix, write_folded
from tests.tiny.llava_next_video import write_tiny_llava_next_video
from tests.tiny.llava_onevision import write_tiny_llava_onevision
from tests.tiny.mllama import write_tiny_mllama
from tests.tiny.video_llava import write_tiny_video_llava

FOLDERS = [item for item in os.environ.get("DCSURGERY_OLD_TRANSFORMERS", "").split(":") if item]
ACROSS_VERSIONS = 5e-5
OPTIONS = {"dci": {"connector": "dci"}, "sci": {"connector": "sci"}}

SCRIPT = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file

assert not any(name.startswith("dcsurgery") for name in sys.modules)
assert transformers.__file__.startswith(sys.argv[1]), transformers.__file__
torch.set_num_threads(1)
for inputs_file, out_file, folders in json.load(open(sys.argv[2])):
    inputs, out = load_file(inputs_file), {}
    for folder in folders:
        name = json.load(open(folder + "/config.json"))["architectures"][0]
        model, info = getattr(transformers, name).from_pretrained(
            folder, torch_dtype=torch.float32, output_loading_info=True)
        for kind in ("missing", "unexpected", "mismatched"):
            assert not info[kind + "_keys"], (folder, kind, info[kind + "_keys"])
        with torch.no_grad():
            out[folder] = model.eval()(**inputs).logits.contiguous()
    save_file(out, out_file)
"""

BASES: dict[str, tuple[Callable[..., Path], Callable[[Any], dict[str, torch.Tensor]]]] = {
    **{
        tower: (partial(write_tiny_llava, tower=tower), partial(llava_inputs, batch=2, images=1))
        for tower in ("clip", "siglip", "pixtral")
    },
    "next": (write_tiny_llava_next, partial(tile_inputs, batch=2, images=1)),
    "next_video": (write_tiny_llava_next_video, mixed_inputs),
    "onevision": (write_tiny_llava_onevision, partial(tile_inputs, batch=2, images=1)),
    "onevision_video": (write_tiny_llava_onevision, mixed_inputs),
    "video": (write_tiny_video_llava, mixed_inputs),
    "mllama": (write_tiny_mllama, partial(mllama_inputs, batch=2, images=1)),
}


def version_in(folder: str) -> str:
    """Return the version of the transformers package below a folder."""
    text = (Path(folder) / "transformers" / "__init__.py").read_text(encoding="utf-8")
    return re.findall(r'__version__ = "([\d.]+)', text)[0]


# 4.49.0 cannot read a video with LLaVA-OneVision: it looks for its tokens among the image's.
BROKEN = {("4.49.0", "onevision_video")}
CASES = [(old, name) for old in FOLDERS for name in BASES if (version_in(old), name) not in BROKEN]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDERS, reason="DCSURGERY_OLD_TRANSFORMERS names no folder"),
]


@dataclass(frozen=True)
class Converted:
    """A base and its conversions: logits of the installed transformers by folder."""

    base: str
    logits: dict[str, torch.Tensor]
    inputs: Path


def convert_all(name: str, work: Path) -> Converted:
    """Convert a base to every connector, empty and with a random matrix folded in."""
    write, make_inputs = BASES[name]
    base = write(work / "base")
    model = load(base)
    inputs = make_inputs(model)
    with torch.no_grad():
        logits = {str(base): model(**inputs).logits}
    for kind, options in OPTIONS.items():
        plan = convert_checkpoint(base, work / kind, **options).plan
        logits[str(work / kind)] = logits[str(base)]
        folded = work / f"{kind}-folded"
        write_folded(base, folded, random_matrix(plan), **options)
        with torch.no_grad():
            logits[str(folded)] = load(folded)(**inputs).logits
    # What Video-LLaVA's forward called it in 4.x.
    renamed = {"pixel_values": "pixel_values_images"} if name == "video" else {}
    tensors = {renamed.get(key, key): value.contiguous() for key, value in inputs.items()}
    save_file(tensors, work / "inputs")
    return Converted(str(base), logits, work / "inputs")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    return {name: convert_all(name, tmp_path_factory.mktemp(name)) for name in BASES}


@pytest.fixture(scope="module")
def run_old(
    converted: dict[str, Converted], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, dict[str, torch.Tensor]]]:
    """Return what an older transformers computes for every base and folder, in one process."""

    @cache
    def run(old: str) -> dict[str, dict[str, torch.Tensor]]:
        work = tmp_path_factory.mktemp("old")
        names = [name for folder, name in CASES if folder == old]
        jobs = [
            [str(converted[name].inputs), str(work / name), list(converted[name].logits)]
            for name in names
        ]
        (work / "jobs.json").write_text(json.dumps(jobs))
        environment = {**os.environ, "PYTHONPATH": old, "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, old, str(work / "jobs.json")],
            cwd=work, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return {name: load_file(work / name) for name in names}

    return run


@pytest.mark.parametrize(("old", "name"), CASES, ids=lambda value: Path(value).name)
def test_stock_checkpoints(
    old: str, name: str, converted: dict[str, Converted], run_old: Callable[..., Any]
) -> None:
    case, found = converted[name], run_old(old)[name]
    version = tuple(map(int, version_in(old).split(".")))
    # Before 4.57 mllama's list counted the embeddings too: the base itself is another model there.
    another = name == "mllama" and version < (4, 57)
    for folder, here in case.logits.items():
        # Versions differ from each other in rounding; within one, a zero matrix is the base.
        difference = (found[folder] - here).abs().max() / here.abs().max()
        assert difference > 0.05 if another else difference <= ACROSS_VERSIONS, folder
        if "folded" in folder:
            assert (found[folder] - found[case.base]).abs().max() > 0.05
        elif not another:
            assert_near(found[folder], found[case.base], what=folder)
