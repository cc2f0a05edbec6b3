"""Converting Hub models: the real client against a local server, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE
from tests.checkpoint.folders import PROJECTOR, WEIGHT, llava, write
from tests.checkpoint.test_rewrite import cache_state, load, same
from tests.hub_server import Hub, running_hub

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FILES = llava(shards=3, filler=20_000)
SHARDS = [name for name in FILES if name.startswith("model-")]
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


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with running_hub() as hub:
        hub.add(NAME, FILES)
        yield Client(hub, tmp_path)


def header_bytes(name: str) -> int:
    return 8 + int.from_bytes(FILES[name][:8], "little")


HEADERS = sum(map(header_bytes, SHARDS))
SMALL = len(FILES["config.json"]) + len(FILES["model.safetensors.index.json"]) + HEADERS


@pytest.mark.parametrize("what", ["inspect", "preview"])
def test_looking_at_a_model_fetches_config_index_and_headers_only(
    what: str, client: Client
) -> None:
    found = client.run(what)
    assert "error" not in found
    assert client.file_bytes() == SMALL
    assert not [path for path in client.cache.rglob("*") if path.is_file()]
    assert not client.output.exists()


def test_a_delta_needs_no_weights_but_the_projector_s(client: Client) -> None:
    found = client.run("convert", form="delta")
    projector = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in load(write(client.output.parent / "x", FILES)).items()
        if name.startswith(PROJECTOR)
    )
    assert client.file_bytes() == SMALL + projector
    assert not list(client.cache.rglob("*.safetensors"))
    base = found["plan"]["base"]
    assert (base["id"], base["folder"], base["revision"]) == (NAME, None, None)
    assert base["commit"] == client.hub.repositories[NAME].commit
    assert sorted(p.name for p in client.output.iterdir()) == [
        ".dcsurgery.json",
        "README.md",
        "dense_connector",
    ]


def test_converting_goes_through_the_cache_and_leaves_it_alone(
    client: Client, tmp_path: Path
) -> None:
    found = client.run("convert", link=True)
    assert found["plan"]["base"]["commit"] == client.hub.repositories[NAME].commit
    assert found["plan"]["base"]["revision"] is None
    assert "hardlink" not in found["modes"].values()
    assert client.hub.sent(".bin") == 0
    before = cache_state(client.cache)
    for path in client.output.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_nlink == 1
    old, new = load(write(tmp_path / "x", FILES)), load(client.output)
    assert all(same(old[name], new[name]) for name in old.keys() - {WEIGHT})
    assert (client.output / PLAN_FILE).is_file()
    assert (client.output / DELTA_FILE).is_file()
    # Without the Hub, by the same name, from the cache.
    client.hub.log.clear()
    for path in client.output.rglob("*.safetensors"):
        path.write_bytes(b"later training")
    kept = client.run("convert", offline=True, overwrite=True, link=True)
    assert kept["error"] == "OutputExistsError" and "(changed)" in kept["message"]
    shutil.rmtree(client.output)
    again = client.run("convert", offline=True, link=True)
    assert again["plan"]["base"] == found["plan"]["base"]
    assert not client.hub.log
    assert cache_state(client.cache) == before


def test_a_revision_is_followed_and_recorded(client: Client) -> None:
    commit = client.hub.repositories[NAME].commit
    found = client.run("convert", revision=commit)
    assert found["plan"]["base"]["revision"] == found["plan"]["base"]["commit"] == commit
    missing = client.run("convert", revision="v9", overwrite=True)
    assert missing["error"] == "CheckpointNotFoundError"
    assert "v9" in missing["message"]


def test_an_output_that_exists_is_refused_before_the_download(client: Client) -> None:
    write(client.output, {"mine": b"mine"})
    found = client.run("convert")
    assert found["error"] == "OutputExistsError"
    assert client.file_bytes() == SMALL


def test_hub_refusals_leave_no_output(client: Client) -> None:
    client.hub.add("org/bad", FILES | {"config.json": b"[1]"})
    client.hub.add("org/cut", FILES | {SHARDS[0]: FILES[SHARDS[0]][:-9]})
    for name, error in (
        ("org/absent", "CheckpointNotFoundError"),
        ("org/bad", "MalformedCheckpointError"),
        ("org/cut", "MalformedCheckpointError"),
    ):
        found = client.run("convert", model=name)
        assert found["error"] == error
        assert found["hint"]
        assert not list(client.output.parent.glob("OUT*"))
    assert client.hub.sent(SHARDS[1]) < len(FILES[SHARDS[1]])
