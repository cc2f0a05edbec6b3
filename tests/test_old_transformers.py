"""Stock checkpoints in older transformers, without dcsurgery: same logits as the base.

Set DCSURGERY_OLD_TRANSFORMERS to folders made by `pip install --no-deps --target` (`.ci/run` does).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dcsurgery.convert import convert_checkpoint
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.llava_next import write_tiny_llava_next
from dcsurgery.tiny.llava_next_video import write_tiny_llava_next_video
from dcsurgery.tiny.llava_onevision import write_tiny_llava_onevision
from dcsurgery.tiny.video_llava import write_tiny_video_llava
from tests.architectures.cases import load
from tests.architectures.test_llava import llava_inputs
from tests.architectures.tiles import mixed_inputs, tile_inputs
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
for folder in sys.argv[5:]:
    model, info = getattr(transformers, sys.argv[4]).from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True)
    for kind in ("missing", "unexpected", "mismatched"):
        assert not info[kind + "_keys"], (folder, kind, info[kind + "_keys"])
    with torch.no_grad():
        out[folder] = model.eval()(**inputs).logits.contiguous()
save_file(out, sys.argv[3])
"""

pytestmark = pytest.mark.skipif(not FOLDERS, reason="DCSURGERY_OLD_TRANSFORMERS names no folder")


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
}


# 4.49.0 cannot read a video with LLaVA-OneVision: it looks for its tokens among the image's.
BROKEN = ("4.49.0", "onevision_video")
CASES = [
    (old, name) for old in FOLDERS for name in BASES if not (BROKEN[0] in old and name == BROKEN[1])
]


@pytest.mark.parametrize(("old", "name"), CASES, ids=lambda value: Path(value).name)
def test_stock_checkpoints(old: str, name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    write, make_inputs = BASES[name]
    base = write(tmp_path / "base")
    expected = {str(base): load(base)}
    for kind, options in OPTIONS.items():
        plan = convert_checkpoint(base, tmp_path / kind, **options).plan
        expected[str(tmp_path / kind)] = expected[str(base)]
        folded = tmp_path / f"{kind}-folded"
        write_folded(base, folded, random_matrix(plan), **options)
        expected[str(folded)] = load(folded)
    inputs = make_inputs(expected[str(base)])
    # What Video-LLaVA's forward called it in 4.x.
    renamed = {"pixel_values": "pixel_values_images"} if name == "video" else {}
    save_file({renamed.get(key, key): v for key, v in inputs.items()}, tmp_path / "inputs")
    class_name = type(expected[str(base)]).__name__
    files = [str(tmp_path / "inputs"), str(tmp_path / "out")]
    command = [sys.executable, "-c", SCRIPT, old, *files, class_name]
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
