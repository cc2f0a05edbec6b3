"""A converted model is pushed, and comes back by its id: the whole way, with verification."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub import Hub, User, running_hub
from tests.publishing.pusher import Pusher, running_pusher

BASE = "org/base"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("push")


@pytest.fixture(scope="module")
def hub(tiny_siglip: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users["hf_writer"] = User("me")
        card = b"---\nlicense: llama2\nlanguage:\n- en\n- fr\n---\n# Base\n"
        files = {path.name: path.read_bytes() for path in tiny_siglip.iterdir()}
        hub.add(BASE, files | {"README.md": card}, xet=True)
        yield hub


@pytest.fixture(scope="module")
def pusher(hub: Hub, place: Path) -> Iterator[Pusher]:
    with running_pusher(hub, place, heavy=True) as pusher:
        yield pusher


def test_try(pusher: Pusher, hub: Hub, place: Path) -> None:
    done = pusher.run("convert", BASE, "-o", place / "stock", "--json")
    assert done.code == 0, done.err
    print(done.out[:300])
    done = pusher.run("push", place / "stock", "me/stock", "--dry-run")
    print(done.out, done.err)
    hub.log.clear()
    done = pusher.run("push", place / "stock", "me/stock")
    print(done.out, done.err)
    for item in hub.log:
        print(item)
    print(hub.repositories["me/stock"].files["README.md"].decode())
    done = pusher.run("push", place / "stock", "me/stock", "--json")
    print(done.out, done.err)
    done = pusher.run("convert", BASE, "-o", place / "delta", "--form", "delta", "--json")
    done = pusher.run("push", place / "delta", "delta")
    print(done.out, done.err)
    print(hub.repositories["me/delta"].files["README.md"].decode())
    (place / "w.png").write_bytes(hub.repositories["me/delta"].files["dense_connector/wiring.png"])
    print(place)
    assert 0
