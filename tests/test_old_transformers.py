"""Stock checkpoints in older transformers, without dcsurgery: same logits as the base.

Set DCSURGERY_OLD_TRANSFORMERS to folders made by `pip install --no-deps --target` (`.ci/run` does).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcsurgery.convert import convert_checkpoint
from tests.architectures.cases import load
from tests.architectures.test_llava import llava_inputs
from tests.surgery import random_matrix, write_folded

FOLDERS = [item for item in os.environ.get("DCSURGERY_OLD_TRANSFORMERS", "").split(":") if item]
TOLERANCE = 1e-5
ACROSS_VERSIONS = 5e-5
OPTIONS = {"dci": {"connector": "dci"}, "sci": {"connector": "sci"}}

SCRIPT = """
import sys
import torch, transformers
from safetensors.torch import load_file, save_file

assert not any(name.startswith("dcsurgery") for name in sys.modules)
assert transformers.__file__.startswith(sys.argv[1]), transformers.__file__
torch.set_num_threads(1)
inputs = load_file(sys.argv[2])
out = {}
for folder in sys.argv[4:]:
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
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
    from safetensors.torch import save_file

    base = request.getfixturevalue(f"tiny_{tower}")
    expected = {str(base): load(base)}
    for kind, options in OPTIONS.items():
        plan = convert_checkpoint(base, tmp_path / kind, **options).plan
        expected[str(tmp_path / kind)] = expected[str(base)]
        folded = tmp_path / f"{kind}-folded"
        write_folded(base, folded, random_matrix(plan), **options)
        expected[str(folded)] = load(folded)
    inputs = llava_inputs(expected[str(base)], 2, 1)
    save_file(inputs, tmp_path / "inputs")
    command = [sys.executable, "-c", SCRIPT, old, str(tmp_path / "inputs"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": old, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, *expected], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "out")
    for folder, model in expected.items():
        with torch.no_grad():
            here = model(**inputs).logits
        # Versions differ from each other in rounding; within one, a zero matrix is the base.
        assert (found[folder] - here).abs().max() <= ACROSS_VERSIONS, folder
        if "folded" in folder:
            assert (found[folder] - found[str(base)]).abs().max() > 0.05
        else:
            assert (found[folder] - found[str(base)]).abs().max() <= TOLERANCE, folder
