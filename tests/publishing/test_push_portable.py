"""A Qwen2.5-VL is converted and pushed; another machine follows its card, without dcsurgery."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dcsurgery
from dcsurgery.surgery.export import export_checkpoint
from dcsurgery.surgery.portable import code_digest
from tests.architectures.families import contract
from tests.hub import User, running_hub
from tests.publishing.pusher import environment, running_pusher
from tests.surgery import random_matrix, write_delta
from tests.tiny.qwen2_5_vl import write_tiny_qwen2_5_vl

BASE, NAME = "Qwen/Qwen2.5-VL-3B-Instruct", "my-name/qwen2.5-vl-dci"
ELSEWHERE = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "dcsurgery":
            raise ModuleNotFoundError("dcsurgery is not installed here")

sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file

names = {}
exec(sys.argv[1], names)
with torch.no_grad():
    logits = names["model"].eval()(**load_file(sys.argv[2])).logits
print(json.dumps([type(names["model"]).__name__, logits.double().flatten()[::97].tolist()]))
"""


@pytest.mark.slow
def test_a_second_machine_answers_with_the_connector(tmp_path: Path) -> None:
    base = write_tiny_qwen2_5_vl(tmp_path / "base")
    plan = dcsurgery.convert(base, tmp_path / "zero", form="delta").plan
    write_delta(base, tmp_path / "delta", random_matrix(plan))
    export_checkpoint(tmp_path / "delta", tmp_path / "portable", form="portable")
    with running_hub() as hub:
        hub.users["hf_writer"] = User("my-name")
        files = {path.name: path.read_bytes() for path in base.iterdir()}
        hub.add(BASE, files | {"README.md": b"---\nlicense: apache-2.0\n---\n"})
        with running_pusher(hub, tmp_path, heavy=True) as pusher:
            out = tmp_path / "portable"
            done = pusher.run("push", out, NAME, "--base-model", BASE, "--json")
            assert done.code == 0, done.err
        card = hub.repositories[NAME].files["README.md"].decode()
        assert code_digest() in card and "`code_revision`" in card
        assert f"vllm serve {NAME} --trust-remote-code" in card
        code = next(iter(re.findall(r"```python\n(.*?)```", card, flags=re.S)))
        # Its processor needs torchvision for videos, which is not installed here.
        code, found, _ = code.partition("processor = ")
        assert found
        branch = dcsurgery.load(tmp_path / "delta")
        inputs = contract("qwen2_5_vl.TestQwen25VL").inputs(branch, 1, 1)
        save_file({k: v.contiguous() for k, v in inputs.items()}, tmp_path / "inputs")
        env = environment(hub, tmp_path / "elsewhere") | {"TRANSFORMERS_VERBOSITY": "error"}
        ran = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, code, tmp_path / "inputs"],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    name, found = json.loads(ran.stdout.splitlines()[-1])
    with torch.no_grad():
        wanted = branch(**inputs).logits.double().flatten()[::97].tolist()
    assert name == "DenseQwen2_5_VLForConditionalGeneration" and found == wanted
