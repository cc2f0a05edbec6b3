"""Stock checkpoints in older transformers, without dcsurgery: same logits as the base.

Set DCSURGERY_OLD_TRANSFORMERS to folders made by `pip install --no-deps --target` (`.ci/run` does).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcsurgery.convert import convert_checkpoint
from dcsurgery.tiny.mllama import write_tiny_mllama
from tests.architectures.cases import load
from tests.architectures.test_llava import llava_inputs
from tests.architectures.test_mllama import mllama_inputs
from tests.surgery import random_matrix, write_folded

FOLDERS = [item for item in os.environ.get("DCSURGERY_OLD_TRANSFORMERS", "").split(":") if item]
TOLERANCE = 1e-5
ACROSS_VERSIONS = 5e-5
OPTIONS = {"dci": {"connector": "dci"}, "sci": {"connector": "sci"}}

SCRIPT = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file

assert not any(name.startswith("dcsurgery") for name in sys.modules)
assert transformers.__file__.startswith(sys.argv[1]), transformers.__file__
torch.set_num_threads(1)
inputs = load_file(sys.argv[2])
out = {}
for folder in sys.argv[4:]:
    name = json.load(open(folder + "/config.json"))["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True)
    for kind in ("missing", "unexpected", "mismatched"):
        assert not info[kind + "_keys"], (folder, kind, info[kind + "_keys"])
    with torch.no_grad():
        out[folder] = model.eval()(**inputs).logits.contiguous()
save_file(out, sys.argv[3])
"""

pytestmark = pytest.mark.skipif(not FOLDERS, reason="DCSURGERY_OLD_TRANSFORMERS names no folder")


@pytest.mark.parametrize("tower", ["clip", "siglip", "pixtral"])
@pytest.mark.parametrize("old", FOLDERS, ids=lambda folder: Path(folder).name)
def test_stock_checkpoints(
    old: str, tower: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(f"tiny_{tower}")
    expected = write_outputs(base, tmp_path)
    inputs = llava_inputs(expected[str(base)], 2, 1)
    found = run_old(old, tmp_path, expected, inputs)
    for folder, model in expected.items():
        with torch.no_grad():
            here = model(**inputs).logits
        # Versions differ from each other in rounding; within one, a zero matrix is the base.
        assert (found[folder] - here).abs().max() <= ACROSS_VERSIONS, folder
        if "folded" in folder:
            assert (found[folder] - found[str(base)]).abs().max() > 0.05
        else:
            assert (found[folder] - found[str(base)]).abs().max() <= TOLERANCE, folder


@pytest.mark.parametrize("old", FOLDERS, ids=lambda folder: Path(folder).name)
def test_mllama_since_its_list_counts_block_outputs(old: str, tmp_path: Path) -> None:
    """Before, the list counted the embeddings too: there the base itself computes another thing."""
    base = write_tiny_mllama(tmp_path / "base")
    expected = write_outputs(base, tmp_path)
    inputs = mllama_inputs(expected[str(base)], 2, 1)
    found = run_old(old, tmp_path, expected, inputs)
    text = (Path(old) / "transformers" / "__init__.py").read_text()
    version = tuple(map(int, re.findall(r'__version__ = "(\d+)\.(\d+)', text)[0]))
    for folder, model in expected.items():
        with torch.no_grad():
            difference = (found[folder] - model(**inputs).logits).abs().max()
        assert difference <= ACROSS_VERSIONS if version >= (4, 57) else difference > 0.05, folder


def write_outputs(base: Path, tmp_path: Path) -> dict[str, Any]:
    """Convert a base, empty and with a random matrix; return models by folder, the base first."""
    expected = {str(base): load(base)}
    for kind, options in OPTIONS.items():
        plan = convert_checkpoint(base, tmp_path / kind, **options).plan
        expected[str(tmp_path / kind)] = expected[str(base)]
        folded = tmp_path / f"{kind}-folded"
        write_folded(base, folded, random_matrix(plan), **options)
        expected[str(folded)] = load(folded)
    return expected


def run_old(
    old: str, tmp_path: Path, folders: Mapping[str, Any], inputs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the logits that an older transformers computes for every folder."""
    save_file({key: value.contiguous() for key, value in inputs.items()}, tmp_path / "inputs")
    command = [sys.executable, "-c", SCRIPT, old, str(tmp_path / "inputs"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": old, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, *folders], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(tmp_path / "out")
