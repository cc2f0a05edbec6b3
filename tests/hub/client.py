"""A Hub client in a process of its own, with a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub import Hub

ROOT = Path(__file__).parents[2]
NAME = "org/model"
CHILD = """
import json, sys
from dcsurgery.surgery.convert import convert_checkpoint, plan_conversion
from dcsurgery.errors import DcSurgeryError
from dcsurgery.surgery.inspection import inspect_checkpoint
what, model, output, options = json.loads(sys.argv[1])
try:
    if what == "convert":
        done = convert_checkpoint(model, output, **options)
        result = {"plan": done.plan.model_dump(), "modes": {t.file: t.mode for t in done.transfers}}
    elif what == "preview":
        result = {"plan": plan_conversion(model, output).plan.model_dump()}
    else:
        result = {"inspected": str(inspect_checkpoint(model))[:200]}
except DcSurgeryError as error:
    result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
assert not {"torch", "transformers"} & set(sys.modules)
print(json.dumps(result))
"""


class Client:
    """Runs one call in a fresh process with an own HF_HOME."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.cache, self.output = hub, folder / "hf" / "hub", folder / "OUT"

    def run(self, what: str, model: str = NAME, offline: bool = False, **options: Any) -> Any:
        keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.cache.parent),
            "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        call = [what, model, str(self.output), options]
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(call)], env=keep | settings, cwd=ROOT,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def file_bytes(self) -> int:
        """Bytes of files sent, listings not counted."""
        return sum(item.sent for item in self.hub.log if "/resolve/" in item.path)
