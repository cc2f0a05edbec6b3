"""What a push may be asked for: branches, pull requests, licences, bases that are folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcsurgery.surgery.delta_readme import BEGIN
from tests.checkpoint.folders import llava, write
from tests.hub import Hub, User, running_hub
from tests.publishing.pusher import NOTHING, Done, Pusher, refused, running_pusher
from tests.publishing.reports import evaluation

pytestmark = pytest.mark.slow

BASE, FREE = "org/base", "org/free"
Push = Callable[..., Done]


def card(licence: str, words: str = "# Somebody's") -> bytes:
    return f"---\nlicense: {licence}\n---\n\n{words}\n".encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users |= {"hf_writer": User("me"), "hf_stranger": User("you")}
        hub.add(BASE, llava(shards=2) | {"README.md": card("llama2")}, xet=True)
        hub.add(FREE, llava(shards=2) | {"README.md": card("mit")})
        yield hub


@pytest.fixture(scope="module")
def pusher(served: Hub, place: Path) -> Iterator[Pusher]:
    with running_pusher(served, place, heavy=False) as pusher:
        yield pusher


@pytest.fixture
def hub(served: Hub) -> Hub:
    """The Hub with nothing but the bases on it."""
    served.repositories = {name: served.repositories[name] for name in (BASE, FREE)}
    served.log.clear()
    return served


@pytest.fixture(scope="module")
def made(served: Hub, pusher: Pusher, place: Path) -> dict[str, Path]:
    """Deltas of both bases, a stock checkpoint, and a delta of the first base as a folder."""
    folder = write(place / "kept/base", served.repositories[BASE].files)
    found = {}
    for name, base, form in (
        ("delta", BASE, "delta"), ("free", FREE, "delta"), ("stock", BASE, "stock"),
        ("local", folder, "delta"), ("local-stock", folder, "stock"),
    ):  # fmt: skip
        found[name] = place / name
        done = pusher.run("convert", base, "-o", found[name], "--form", form)
        assert done.code == 0, done.err
    return found


@pytest.fixture
def push(pusher: Pusher, made: dict[str, Path]) -> Push:
    def run(name: str, *options: object, token: str = "hf_writer", repo: str = "me/model") -> Done:
        return pusher.run("push", made[name], repo, "--no-verify", *options, token=token)

    return run


def test_a_branch_is_made_at_main_and_committed_to(hub: Hub, push: Push) -> None:
    assert push("delta").code == 0
    repository = hub.repositories["me/model"]
    main = repository.commit
    done = push("delta", "--revision", "next", "--message", "Mine", "--overwrite-card", "--json")
    assert done.code == 0, done.err
    head = repository.commits[repository.refs["next"]]
    assert (head.parent, head.title, repository.commit) == (main, "Mine", main)
    text = head.entries["README.md"].data.decode()
    assert 'dcsurgery.load("me/model", revision="next")' in text
    refused(push("delta", "--revision", main), "is not a branch")
    refused(push("delta", "--revision", "next", "--create-pr"), "not on next")


def test_a_stranger_may_offer_a_pull_request(hub: Hub, push: Push) -> None:
    refused(push("delta", "--create-pr"), "no me/model to open a pull request on")
    assert push("delta").code == 0
    repository = hub.repositories["me/model"]
    main = repository.commit
    refused(push("delta", token="hf_stranger"), "may not write to me/model (403)")
    done = push("stock", "--create-pr", "--json", "--overwrite-card", token="hf_stranger")
    assert done.code == 0, done.err
    assert repository.commit == main
    assert done.json["pull_request"] == f"{hub.url}/me/model/discussions/1"
    assert repository.commits[repository.refs["refs/pr/1"]].parent == main


def test_private_is_private_or_refused(hub: Hub, push: Push) -> None:
    assert push("delta", "--private").code == 0
    assert hub.repositories["me/model"].private
    assert push("delta", "--private", "--message", "again").code == 0
    refused(push("delta", token="hf_stranger"), "cannot create me/model")
    hub.add("me/open", {"README.md": card("llama2")})
    refused(push("delta", "--private", repo="me/open"), "exists and is public")


@pytest.mark.parametrize(
    ("name", "stated", "option", "found"),
    [
        ("delta", None, (), "llama2"),
        ("delta", None, ("--license", "mit"), None),
        ("delta", "apache-2.0", (), None),
        ("delta", "llama2", (), "llama2"),
        ("free", None, (), "mit"),
        ("free", "cc-by-nc-4.0", (), "cc-by-nc-4.0"),
        ("free", "cc-by-nc-4.0", ("--license", "apache-2.0"), "apache-2.0"),
    ],
)
def test_the_base_s_licence_holds_unless_it_lets_others_be_stated(
    hub: Hub, push: Push, name: str, stated: str | None, option: tuple[str, ...], found: str | None
) -> None:
    if stated is not None:
        hub.add("me/model", {"README.md": card(stated)})
    done = push(name, *option)
    if found is None:
        refused(done, "the base is licensed llama2")
        return
    assert done.code == 0, done.err
    text = hub.repositories["me/model"].files["README.md"].decode()
    assert f"\nlicense: {found}\n" in text
    assert ("# Somebody's" in text) == (stated is not None)


def test_a_delta_whose_base_others_cannot_find_is_refused(
    hub: Hub, push: Push, made: dict[str, Path], place: Path
) -> None:
    refused(push("local"), "needs its base, base (local)", "--base-model", "--form stock")
    refused(push("local", "--base-model", "org/none"), "org/none")
    hub.add("org/twin", llava(shards=2, filler=33))
    refused(
        push("local", "--base-model", "org/twin"), "is not the base this connector was made for"
    )
    refused(push("delta", "--base-model", FREE), f"the base of this model is {BASE}")
    assert "me/model" not in hub.repositories
    assert push("local", "--base-model", BASE).code == 0
    files = hub.repositories["me/model"].files
    plan = json.loads(files["dense_connector/plan.json"])
    assert plan["base"]["id"] == BASE and plan["base"]["folder"] is None
    assert not [name for name, data in files.items() if str(place).encode() in data]
    # A stock checkpoint is whole without it.
    done = push("local-stock", "--json", repo="me/whole")
    assert done.code == 0 and "is not on this Hub" in done.json["notes"][0]
    whole = hub.repositories["me/whole"].files
    assert not [name for name, data in whole.items() if str(place).encode() in data]
    assert "base_model" not in whole["README.md"].decode()
    assert "license: llama2" in whole["README.md"].decode()


def test_what_no_longer_belongs_to_the_model_is_deleted_only_where_push_put_it(
    hub: Hub, push: Push
) -> None:
    hub.add("me/model", {"model.safetensors": b"theirs", "README.md": card("llama2")})
    refused(push("delta"), "holds another model (model.safetensors)")
    hub.add("me/model", {"notes.txt": b"mine", "README.md": card("llama2")})
    assert push("stock").code == 0
    weights = [n for n in hub.repositories["me/model"].files if n.endswith(".safetensors")]
    assert len(weights) == 3
    done = push("delta", "--json")
    assert done.code == 0, done.err
    gone = {item["path"] for item in done.json["files"] if item["action"] == "delete"}
    assert {
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    } < gone
    files = hub.repositories["me/model"].files
    assert [name for name in files if name.endswith(".safetensors")] == [
        "dense_connector/model.safetensors"
    ]
    assert files["notes.txt"] == b"mine" and "config.json" not in files


def test_evaluations_are_published_and_stay_with_the_weights(
    hub: Hub, push: Push, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    values = json.loads(evaluation().model_dump_json())
    values["data"] = str(tmp_path / "test.json")
    values["models"][1]["model"] = str(tmp_path / "OUT2")
    report.write_text(json.dumps(values))
    refused(push("delta", "--eval", tmp_path / "none.json"), "cannot be published", nothing=False)
    assert push("delta", "--eval", report).code == 0
    name = "dense_connector/eval-exact-1.json"
    files = hub.repositories["me/model"].files
    assert json.loads(files[name])["data"] == "test.json"
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert push("delta", "--message", "no change").out.count("nothing was committed") == 1
    # Other weights: what was measured on the old ones goes.
    assert push("stock").code == 0
    files = hub.repositories["me/model"].files
    assert name not in files and "0.6235" not in files["README.md"].decode()


def test_a_card_somebody_wrote_into_the_folder_is_the_card(
    hub: Hub, push: Push, made: dict[str, Path]
) -> None:
    shutil.copytree(made["delta"], made["delta"].with_name("written"))
    made["written"] = made["delta"].with_name("written")
    (made["written"] / "README.md").write_text("---\ntags: [mine]\n---\n# About it\n")
    assert push("written").code == 0
    text = hub.repositories["me/model"].files["README.md"].decode()
    assert "# About it" in text and "- mine" in text and BEGIN in text
    # A broken card on the Hub is not thrown away.
    hub.add("me/bad", {"README.md": b"---\na: [\n---\n# Hi\n"})
    refused(push("delta", repo="me/bad"), "cannot be read", "--overwrite-card")
    assert push("delta", "--overwrite-card", repo="me/bad").code == 0
    assert NOTHING not in hub.repositories["me/bad"].files["README.md"].decode()


def test_large_files_go_in_parts_where_the_hub_wants_it(hub: Hub, push: Push) -> None:
    hub.part_bytes = 2000
    try:
        assert push("stock").code == 0
    finally:
        hub.part_bytes = None
    assert sum(item.path.endswith("/complete") for item in hub.log) >= 2


def test_pushed_bytes_are_the_changed_bytes_to_a_percent(
    hub: Hub, pusher: Pusher, place: Path
) -> None:
    specs = [("language_model.model.big.weight", "F32", (1_500_000,))]
    base = llava(shards=2, extra=[*specs], filler=60_000)
    hub.add("org/big", base, xet=True)
    assert pusher.run("convert", "org/big", "-o", place / "big").code == 0
    hub.log.clear()
    assert pusher.run("push", place / "big", "me/big", "--no-verify").code == 0
    files = hub.repositories["me/big"].files
    changed = sum(len(data) for name, data in files.items() if base.get(name) != data)
    assert 0.99 < hub.received() / changed < 1.01
    assert changed < 0.6 * sum(map(len, files.values()))


def test_a_gated_base_holds_what_is_pushed_to_its_licence(
    hub: Hub, push: Push, place: Path
) -> None:
    # As on a machine that never saw the base: what is cached may be read.
    shutil.rmtree(place / "hf/hub/models--org--base", ignore_errors=True)
    base = hub.repositories[BASE]
    base.gated = True
    try:
        refused(push("delta", "--license", "mit"), "the base is licensed llama2")
        done = push("delta", "--json")
    finally:
        base.gated = False
    assert done.code == 0, done.err
    assert "is gated" in done.json["notes"][0] and "may not read" in done.json["notes"][1]
    assert b"license: llama2" in hub.repositories["me/model"].files["README.md"]
