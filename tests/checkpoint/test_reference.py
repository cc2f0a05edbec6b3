"""Names of models, and reading them from a Hub: the real client against a local server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.checkpoint.model_ref import ModelRef, fetch, is_cache_path, parse_reference
from dcsurgery.errors import CheckpointNotFoundError, RequestError
from tests.checkpoint.folders import sharded
from tests.hub import Hub, running_hub

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHARDS = [name for name in sharded() if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    "name", ["", " ", "./nowhere", "/nowhere", "a/b/c", "a..b", "a--b/c", "x.git", "-x/y", "a/b-",
             "a\0b", "x" * 97, "y" * 5000, "name with space", "~nobody-here/x"],
)  # fmt: skip
def test_names_that_are_neither_folder_nor_id(name: str) -> None:
    with pytest.raises((CheckpointNotFoundError, RequestError)) as caught:
        parse_reference(name)
    assert caught.value.hint
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", ["gpt2", "llava-hf/llava-1.5-7b-hf", "a/b.c_d", "_x/y"])
def test_hub_ids(name: str) -> None:
    ref = parse_reference(name, "v1")
    assert (ref.repo_id, ref.revision, ref.folder, ref.in_cache) == (name, "v1", None, False)


def test_folders_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    ref = parse_reference("org/model")
    assert ref.repo_id is None
    assert ref.folder == Path("org/model")
    assert fetch(ref) is ref
    with pytest.raises(RequestError, match="no revision"):
        parse_reference("org/model", "main")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError):
        parse_reference("file")


def test_cache_paths(tmp_path: Path) -> None:
    assert is_cache_path(tmp_path / "models--a--b" / "snapshots" / "sha")
    assert is_cache_path(tmp_path / "models--a--b" / "blobs" / "x")
    assert is_cache_path(tmp_path / "blobs" / "ab" / ("ab" + "0" * 62))
    assert not is_cache_path(tmp_path / "models--a--b")
    assert not is_cache_path(tmp_path / "snapshots" / "sha")
    blob = tmp_path / "models--a--b" / "blobs" / "x"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").symlink_to(blob)
    assert ModelRef("mine", folder=tmp_path / "mine").in_cache


def test_a_local_folder_needs_no_hub_client() -> None:
    code = "import sys, dcsurgery.checkpoint.contents; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"huggingface_hub", "torch", "transformers", "numpy", "safetensors"}


CHILD = """
import json, sys
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.errors import DcSurgeryError
name, revision, weights, tensor = json.loads(sys.argv[1])
try:
    opened = open_checkpoint(name, revision, weights=weights)
    raw = opened.read_tensor(tensor) if tensor else b""
except DcSurgeryError as error:
    print(json.dumps({"error": type(error).__name__, "message": error.message, "hint": error.hint}))
else:
    print(json.dumps({
        "tensors": list(opened.tensors), "side": opened.side_files, "left": opened.left_out,
        "commit": opened.ref.commit, "folder": str(opened.ref.folder or ""), "raw": len(raw),
        "in_cache": opened.ref.in_cache,
        "torch": "torch" in sys.modules or "transformers" in sys.modules}))
"""


class Client:
    """Opens models in a fresh process: HF_ENDPOINT and HF_HOME are read once, at import."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home

    def open(
        self,
        name: str,
        revision: str | None = None,
        weights: bool = False,
        tensor: str = "",
        **environment: str,
    ) -> dict[str, Any]:
        keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        arguments = json.dumps([name, revision, weights, tensor])
        done = subprocess.run(
            [sys.executable, "-c", CHILD, arguments],
            env=keep | settings | environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "hf_secret" not in done.stdout + done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with running_hub() as hub:
        extra = {"pytorch_model.bin": b"\x80" * 5000, "original/params.json": b"{}"}
        hub.add("org/model", sharded() | extra)
        yield Client(hub, tmp_path / "hf")


def test_inspecting_transfers_header_bytes_only(client: Client) -> None:
    files = sharded()
    found = client.open("org/model")
    assert found["tensors"] == ["m.t0.weight", "m.t1.weight", "m.t2.weight"]
    assert found["commit"] == client.hub.repositories["org/model"].commit
    assert (found["folder"], found["torch"]) == ("", False)
    assert found["side"] == ["sub/extra.txt", "tokenizer.json"]
    for name in SHARDS:
        header = 8 + int.from_bytes(files[name][:8], "little")
        assert client.hub.sent(name) == header < len(files[name]) / 20
    assert client.hub.sent(".bin") == client.hub.sent("tokenizer.json") == 0
    assert not list(client.home.rglob("*.safetensors"))


def test_a_tensor_is_read_by_range(client: Client) -> None:
    found = client.open("org/model", tensor="m.t1.weight")
    assert found["raw"] == 64 * 32 * 4
    assert client.hub.sent(SHARDS[1]) == len(sharded()[SHARDS[1]])


def test_fetching_fills_the_cache_and_works_offline(client: Client) -> None:
    found = client.open("org/model", weights=True)
    assert found["in_cache"]
    assert found["commit"] == client.hub.repositories["org/model"].commit
    assert Path(found["folder"]).is_relative_to(client.home)
    assert client.hub.sent(".bin") == 0
    client.hub.log.clear()
    for weights in (False, True):
        offline = client.open("org/model", weights=weights, HF_HUB_OFFLINE="1")
        assert "error" not in offline, offline
        assert (offline["commit"], offline["in_cache"]) == (found["commit"], True)
        assert offline["side"] == found["side"]
    unreachable = client.open("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable["folder"] == found["folder"]
    assert not client.hub.log


def test_a_bad_model_is_refused_before_its_weights_are_fetched(client: Client) -> None:
    client.hub.add("org/bad", sharded() | {"config.json": b"["})
    client.hub.add("org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"\x80" * 999})
    assert client.open("org/bad", weights=True)["error"] == "MalformedCheckpointError"
    assert client.open("org/pickle", weights=True)["error"] == "UnsafeFormatError"
    assert client.hub.sent(".safetensors") == client.hub.sent(".bin") == 0


def test_hub_refusals_are_clean(client: Client) -> None:
    hub = client.hub
    hub.add("org/gated", sharded(), gated=True)
    hub.add("org/private", sharded(), token="hf_secret_right")
    missing = "CheckpointNotFoundError"
    assert client.open("org/absent")["error"] == missing
    assert client.open("org/absent", HF_TOKEN="hf_secret_wrong")["error"] == missing
    assert client.open("org/model", revision="nope")["error"] == missing
    assert "gated" in client.open("org/gated")["message"]
    assert client.open("org/private")["error"] == missing
    assert client.open("org/private", HF_TOKEN="hf_secret_right")["tensors"]
    offline = client.open("org/model", HF_HUB_OFFLINE="1")
    assert offline["error"] == "HubUnreachableError"
    assert "HF_HUB_OFFLINE" in offline["hint"]
    unreachable = client.open("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable["error"] == "HubUnreachableError"


def test_failing_servers_are_clean_errors(client: Client) -> None:
    client.hub.ignore_ranges = True
    found = client.open("org/model")
    assert found["error"] == "CheckpointError"
    assert "range" in found["hint"]
    client.hub.failure = 500
    assert "500" in client.open("org/model")["message"]
