"""Converting Hub models: the real client against a local server, in processes of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE
from tests.checkpoint.folders import PROJECTOR, WEIGHT, cache_state, llava, load, same, write
from tests.hub import running_hub
from tests.hub.client import NAME, Client

pytestmark = pytest.mark.slow

FILES = llava(shards=3, filler=20_000)
SHARDS = [name for name in FILES if name.startswith("model-")]


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
