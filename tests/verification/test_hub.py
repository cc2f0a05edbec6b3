"""Somebody else's converted model on the Hub: verified by range requests, by the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.checkpoint.headers import read_header
from dcsurgery.tiny.llava import write_tiny_llava
from tests.hub import Hub, running_hub

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BASE = "org/base"
CHILD = """
import json, sys
import dcsurgery
from dcsurgery.errors import DcSurgeryError
what, arguments, options = json.loads(sys.argv[1])
told = []
if what == "verify":
    options["announce"] = told.append
try:
    done = getattr(dcsurgery, what)(*arguments, **options)
    result = {"report": done.to_dict(), "remote": told[0].remote} if what == "verify" else {}
except DcSurgeryError as error:
    result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
print(json.dumps(result))
"""


class Client:
    """Calls dcsurgery with an own HF_HOME against a small Hub."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder

    def run(self, what: str, *arguments: object, offline: bool = False, **options: Any) -> Any:
        keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        call = json.dumps([what, list(map(str, arguments)), options])
        done = subprocess.run(
            [sys.executable, "-c", CHILD, call], env=keep | settings, cwd=ROOT,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def weights(self) -> int:
        """Bytes of weight files sent."""
        sent = [item for item in self.hub.log if "/resolve/" in item.path]
        weights = [item for item in sent if item.path.endswith(".safetensors")]
        return sum(item.sent for item in weights if "dense_connector" not in item.path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    base = write_tiny_llava(tmp_path / "base", shards=12)
    with running_hub() as hub:
        hub.add(BASE, files_of(base))
        yield Client(hub, tmp_path)


def publish(client: Client, form: str, **options: Any) -> str:
    """Convert the Hub's base and put the output on the Hub; the cache stays as it was."""
    maker = Client(client.hub, client.folder / "maker")
    out = client.folder / f"out-{form}"
    assert maker.run("convert", BASE, out, form=form, **options) == {}
    name = f"me/{form}"
    client.hub.add(name, files_of(out))
    client.hub.log.clear()
    return name


@pytest.mark.parametrize("form", ["delta", "stock"])
def test_an_output_on_the_hub_verifies_by_ranges(form: str, client: Client) -> None:
    name = publish(client, form)
    found = client.run("verify", name)
    assert found["report"]["passed"], found["report"]["checks"]
    checks = {check["name"] for check in found["report"]["checks"]}
    assert "features: branch against the formula" in checks
    assert "processor and model agree on image tokens" in checks
    assert ("every other tensor" in checks) == (form == "stock")
    # Shards that did not change and hold words and blocks alone: their headers, once on each side.
    unread = 0
    for path in (client.folder / "base").glob("*.safetensors"):
        header = read_header(path)
        if all("language_model" in tensor for tensor in header.tensors):
            unread += 1
            sent = [item.sent for item in client.hub.log if item.path.endswith(path.name)]
            assert sum(sent) <= (2 if form == "stock" else 1) * header.data_start
    assert unread
    assert not list((client.folder / "hf").rglob("model-*.safetensors"))
    assert found["remote"] > 0


def test_a_delta_reads_tower_and_projector_alone(client: Client) -> None:
    name = publish(client, "delta")
    client.run("verify", name)
    seen = headers = 0
    for path in (client.folder / "base").glob("*.safetensors"):
        header = read_header(path)
        headers += header.data_start
        seen += sum(
            entry.nbytes
            for tensor, entry in header.tensors.items()
            if "layers." not in tensor.partition("language_model")[2]
            and "embed_tokens" not in tensor and "lm_head" not in tensor
        )  # fmt: skip
    # Projector tensors once more for their digests; the headers once.
    assert headers <= client.weights() <= headers + 2 * seen


def test_a_tampered_output_fails(client: Client) -> None:
    name = publish(client, "stock")
    entries = files_of(client.folder / "out-stock")
    for shard in (n for n in entries if n.startswith("model-") and n.endswith(".safetensors")):
        changed = {**entries, shard: entries[shard][:-1] + bytes([entries[shard][-1] ^ 1])}
        client.hub.add("evil/stock", changed)
        report = client.run("verify", "evil/stock")["report"]
        assert not report["passed"], shard
    assert name == "me/stock"


def test_weights_beside_a_delta_are_seen(client: Client) -> None:
    publish(client, "delta")
    entries = files_of(client.folder / "out-delta")
    base = files_of(client.folder / "base")
    client.hub.add("evil/delta", {**entries, "config.json": base["config.json"]})
    report = client.run("verify", "evil/delta")["report"]
    (failed,) = [check for check in report["checks"] if not check["passed"]]
    assert failed["name"] == "file layout"


def test_against_another_base(client: Client, tmp_path: Path) -> None:
    name = publish(client, "delta")
    client.hub.add("mirror/base", files_of(tmp_path / "base"))
    assert client.run("verify", name, against="mirror/base")["report"]["passed"]
    assert client.run("verify", name, against=str(tmp_path / "base"))["report"]["passed"]
    other = write_tiny_llava(tmp_path / "other", shards=12, depth=5)
    client.hub.add("mirror/other", files_of(other))
    assert not client.run("verify", name, against="mirror/other")["report"]["passed"]


def test_a_revision_and_what_is_not_there(client: Client) -> None:
    name = publish(client, "delta")
    commit = client.hub.repositories[name].commit
    assert client.run("verify", name, revision=commit)["report"]["passed"]
    found = client.run("verify", "me/nothing")
    assert "neither a folder nor a Hub model" in found["message"]
    found = client.run("verify", BASE)
    assert "has no dense_connector/plan.json" in found["message"]
    found = client.run("verify", name, revision="nope")
    assert "no revision 'nope'" in found["message"]


def test_logits_fetch_both_models_whole(client: Client) -> None:
    name = publish(client, "stock")
    found = client.run("verify", name, logits=True)
    assert found["report"]["passed"]
    assert list((client.folder / "hf").rglob("model-*.safetensors"))
    # What is in the cache is read there, also without the Hub.
    client.hub.log.clear()
    again = client.run("verify", name, offline=True)
    assert again["report"]["passed"], again
    assert not client.hub.log
