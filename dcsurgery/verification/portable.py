"""A portable folder in a process of its own, which cannot import dcsurgery."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dcsurgery.errors import VerificationError
from dcsurgery.surgery.plan_file import ADAPTER_FOLDER, SurgeryPlan
from dcsurgery.verification.report import Check

# Runs the folder's own code: verify compares its hash with the shipped file's before.
CHILD = """
import importlib.abc, sys
import torch

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "dcsurgery":
            raise ModuleNotFoundError("dcsurgery is not installed here")

sys.meta_path.insert(0, Blocked())
import transformers
from transformers import AutoModelForImageTextToText

folder, given, output, stock, adapter = sys.argv[1:]
transformers.logging.set_verbosity_error()
model = AutoModelForImageTextToText.from_pretrained(
    folder, dtype="auto", trust_remote_code=True
).eval()
if adapter:
    model.load_adapter(adapter)
with torch.no_grad():
    logits = model(**torch.load(given, weights_only=True)).logits
name = type(model).__name__
del model
transformers.logging.set_verbosity(60)
try:
    getattr(transformers, stock).from_pretrained(folder)
    refused = ""
except Exception as error:
    refused = type(error).__name__
torch.save({"logits": logits, "name": name, "refused": refused}, output)
"""


def portable_checks(
    plan: SurgeryPlan, folder: Path, inputs: Mapping[str, Tensor], branch: Tensor
) -> list[Check]:
    """Compare the folder in plain transformers with the branch, and try to load it without.

    `inputs` are the keywords of the forward pass that gave `branch`. The folder runs in another
    process, which does not have dcsurgery. Raises VerificationError when it does not run at all.
    """
    stock = str(plan.config_changes["architectures"]["from"][0])
    beside = plan.adapter is not None and not plan.adapter.merged
    with tempfile.TemporaryDirectory(prefix="dcsurgery-") as made:
        given, output = Path(made) / "inputs.pt", Path(made) / "logits.pt"
        torch.save(dict(inputs), given)
        adapter = str(folder / ADAPTER_FOLDER) if beside else ""
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder), str(given), str(output), stock, adapter],
            env={**os.environ, "HF_MODULES_CACHE": str(Path(made) / "modules")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            why = done.stderr.strip().split("\n")[-1][:200]
            raise VerificationError(
                f"{folder} does not run in plain transformers: {why}",
                hint="load it with trust_remote_code=True yourself to see the whole message",
            )
        found = torch.load(output, weights_only=True)
    logits: Tensor = found["logits"]
    worst = (logits.float() - branch.float()).abs().max().item()
    return [
        Check(
            "logits: plain transformers against branch",
            torch.equal(logits, branch),
            f"max difference {worst:.3g} ({found['name']}, dcsurgery absent)",
            "bit-equal",
        ),
        Check(
            "the stock class refuses the folder",
            bool(found["refused"]),
            f"{stock}: {found['refused'] or 'loaded it as the unmodified base'}",
            "an error",
        ),
    ]
