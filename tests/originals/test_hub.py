"""Originals and towers on the Hub: the real client against a local server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from tests.hub import Hub, running_hub
from tests.hub.client import Client

MODEL, TOWER = "org/llava", "someone/clip-tower"
SIZES = OriginalSizes(depth=4, width=64, inter=512, words=3000, hidden=64)


def files(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return found


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with running_hub() as hub:
        tower = files(write_tower(tmp_path / "tower", SIZES, pickled=True))
        hub.add(TOWER, tower | {"tf_model.h5": bytes(1000)})
        model = write_original_llava(
            tmp_path / "model", SIZES, TOWER, inside=False, pickled=True, shards=2
        )
        hub.add(MODEL, files(model))
        yield Client(hub, tmp_path)


def weight_bytes(hub: Hub) -> int:
    return hub.sent(".bin")


def test_an_original_and_its_tower_are_inspected_by_ranges_and_converted_from_the_cache(
    client: Client,
) -> None:
    sizes = {
        name: len(data)
        for repository in client.hub.repositories.values()
        for name, data in repository.files.items()
        if name.endswith(".bin")
    }
    found = client.run("inspect", MODEL)
    assert "error" not in found, found
    # The ends of the files, where the descriptions are, and no more.
    assert weight_bytes(client.hub) < sum(sizes.values())
    client.hub.log.clear()
    done = client.run("convert", MODEL, form="stock")
    assert done["plan"]["base"]["original"] == "original LLaVA"
    commit = client.hub.repositories[TOWER].commit
    assert done["plan"]["base"]["towers"] == {TOWER: {"place": TOWER, "commit": commit}}
    assert client.hub.sent("tf_model.h5") == 0
    shutil.rmtree(client.output)
    again = client.run("convert", MODEL, offline=True, form="stock")
    assert again["plan"]["base"]["files"] == done["plan"]["base"]["files"]


def test_a_tower_that_is_not_cached_is_named_when_there_is_no_network(client: Client) -> None:
    client.hub.repositories.pop(TOWER)
    failed = client.run("convert", MODEL, form="stock")
    assert failed["error"] == "CheckpointNotFoundError"
    assert repr(TOWER) in failed["message"] and "--tower clip-tower=PATH" in failed["hint"]
    assert not client.output.exists()
