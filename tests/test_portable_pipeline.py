"""A portable folder answers in transformers' own pipeline, in a process without dcsurgery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dcsurgery
from dcsurgery.data.processor import load_processor
from dcsurgery.surgery.export import export_checkpoint
from dcsurgery.tiny import write_tiny_llava
from tests.surgery import random_matrix, write_delta
from tests.tiny.idefics3 import write_tiny_idefics3
from tests.tiny.paligemma import write_tiny_paligemma

pytestmark = pytest.mark.slow
CHILD = """
import json, sys
sys.modules["dcsurgery"] = None
from transformers import pipeline
answer = pipeline("image-text-to-text", model=sys.argv[1], trust_remote_code=True, device="cpu")
asked = {"images": sys.argv[2], "text": "<image>What is this?", "max_new_tokens": 8}
print(json.dumps(answer(**asked, return_full_text=False)[0]["generated_text"]))
"""
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": write_tiny_llava,
    "idefics3": write_tiny_idefics3,
    "paligemma": write_tiny_paligemma,
}


def piped(model: Any, processor: Any, picture: Path) -> str:
    from transformers import pipeline

    answer = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    asked = {"images": str(picture), "text": "<image>What is this?", "max_new_tokens": 8}
    return str(answer(**asked, return_full_text=False)[0]["generated_text"])


@pytest.mark.parametrize("family", WRITERS)
def test_a_pipeline_answers_with_the_connector(family: str, tmp_path: Path) -> None:
    base = WRITERS[family](tmp_path / "base")
    plan = dcsurgery.plan(base, form="delta").plan
    write_delta(base, tmp_path / "delta", random_matrix(plan, scale=1.0))
    export_checkpoint(tmp_path / "delta", tmp_path / "portable", form="portable")
    picture = tmp_path / "picture.png"
    noise = torch.randint(0, 256, (48, 48, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.byte().numpy()).save(picture)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "portable"), str(picture)],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "is not supported" not in done.stderr
    processor = load_processor(base)
    wanted = piped(dcsurgery.load(tmp_path / "delta"), processor, picture)
    assert json.loads(done.stdout.splitlines()[-1]) == wanted
    assert wanted != piped(dcsurgery.load(base), processor, picture), "the connector is not seen"
