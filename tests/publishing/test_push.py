"""A converted model is pushed, and comes back by its id: the whole way, with verification."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE, read_plan
from dcsurgery.verification.pair import open_pair
from dcsurgery.verification.structure import structure_checks
from tests.checkpoint.folders import write
from tests.docs.pages import PAGES
from tests.hub import Hub, User, running_hub
from tests.publishing.numbers import unheld
from tests.publishing.pusher import Pusher, environment, running_pusher
from tests.surgery import random_matrix, write_delta

pytestmark = pytest.mark.slow

# The documentation's own names, behind which a tiny model is served.
BASE = "llava-hf/llava-1.5-7b-hf"
STOCK = "my-name/llava-1.5-7b-dci"
PAGE = PAGES["docs/publishing.md"]
BASE_CARD = "---\nlicense: llama2\nlanguage:\n- en\n- fr\n---\n# The base\n"

LOAD = """
import json, sys
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText, AutoProcessor

found = {}

def logits(name, model):
    side = model.config.vision_config.image_size
    pixels = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
    tokens = [model.config.image_token_id] * (side // model.config.vision_config.patch_size) ** 2
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([[1, *tokens, 5, 6]]), "pixel_values": pixels}
        found[name] = model(**inputs).logits.double().flatten()[::97].tolist()

here, base, name, readme = sys.argv[1:]
logits("stock", AutoModelForImageTextToText.from_pretrained(name, dtype="auto"))
AutoProcessor.from_pretrained(name)
assert not any(name.startswith("dcsurgery") for name in sys.modules)
names = {}
exec(readme, names)
logits("readme stock", names["stock"])
logits("readme delta", names["delta"])
import dcsurgery
logits("delta", dcsurgery.load("my-name/delta"))
logits("delta here", dcsurgery.load(here))
logits("base", AutoModelForImageTextToText.from_pretrained(base, dtype="auto"))
for name in (name, "my-name/delta"):
    card = ModelCard.load(name)
    card.validate()
    found[name] = card.data.to_dict()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("push")


@pytest.fixture(scope="module")
def hub(tiny_siglip: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users["hf_writer"] = User("my-name")
        files = {path.name: path.read_bytes() for path in tiny_siglip.iterdir()}
        hub.add(BASE, files | {"README.md": BASE_CARD.encode()}, xet=True)
        yield hub


@pytest.fixture(scope="module")
def pusher(hub: Hub, place: Path) -> Iterator[Pusher]:
    with running_pusher(hub, place, heavy=True) as pusher:
        yield pusher


@pytest.fixture(scope="module")
def stock(pusher: Pusher, place: Path) -> tuple[Path, dict[str, Any]]:
    """A stock checkpoint, converted and pushed by the page's commands, and what that said."""
    found = {}
    lines = PAGE.blocks[0].commands
    assert [words[0] for words in lines] == ["hf"] + ["dcsurgery"] * 5
    for line in lines[1:]:
        done = pusher.run(*line[1:], *(["--json"] if line[1] == "push" else []))
        assert done.code == 0, (line, done.err)
        found[" ".join(line)] = done
    return place / "llava-1.5-7b-dci", found[f"dcsurgery push llava-1.5-7b-dci {STOCK}"].json


@pytest.fixture(scope="module")
def delta(pusher: Pusher, place: Path, hub: Hub) -> tuple[Path, dict[str, Any]]:
    """A delta with values of its own, made from a folder, and what pushing it said."""
    base = write(place / "folder/base", hub.repositories[BASE].files)
    out = place / "delta"
    plan = write_delta(base, place / "zero", random_matrix(_plan(base, place)))
    write_delta(base, out, random_matrix(plan))
    done = pusher.run("push", out, "my-name/delta", "--base-model", BASE, "--json")
    assert done.code == 0, done.err
    return out, done.json


def _plan(base: Path, place: Path) -> Any:
    from dcsurgery.surgery.convert import plan_conversion

    return plan_conversion(base, form="delta").plan


def actions(result: dict[str, Any]) -> dict[str, str]:
    return {item["path"]: item["action"] for item in result["files"]}


def test_a_pushed_model_loads_by_its_id_in_a_fresh_process(
    hub: Hub, place: Path, tiny_siglip: Path, stock: Any, delta: Any
) -> None:
    (code,) = PAGE.blocks[1].scripts
    env = environment(hub, place / "elsewhere") | {"TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, delta[0], tiny_siglip, STOCK, code],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["stock"] == pytest.approx(found["base"], abs=1e-6)
    assert found["readme stock"] == found["stock"]
    assert found["readme delta"] == found["base"]
    assert found["delta"] == found["delta here"]
    assert found["delta"] != pytest.approx(found["base"], abs=1e-3)
    for name, relation, library in (
        (STOCK, "finetune", "transformers"), ("my-name/delta", "adapter", "dcsurgery"),
    ):  # fmt: skip
        data = found[name]
        assert (data["base_model"], data["base_model_relation"]) == (BASE, relation)
        assert (data["license"], data["language"]) == ("llama2", ["en", "fr"])
        assert data["library_name"] == library
        assert data["pipeline_tag"] == "image-text-to-text"


def test_a_verified_push_says_what_was_verified(hub: Hub, stock: Any, delta: Any) -> None:
    for _, result in (stock, delta):
        files = hub.repositories[result["repo_id"]].files
        report = json.loads(files["dense_connector/verify.json"])
        assert report["passed"] and result["verified"]
        card = files["README.md"].decode()
        for check in report["checks"]:
            assert f"| {check['name']} | {check['measured']} | {check['limit']} |" in card
        texts = [data.decode() for name, data in files.items() if name.endswith(".json")]
        assert unheld(card, texts) == set()
        assert files["dense_connector/wiring.png"].startswith(b"\x89PNG")
        assert "](dense_connector/wiring.png)" in card


def test_what_the_base_s_repository_has_is_copied_and_the_rest_sent(
    hub: Hub, stock: tuple[Path, dict[str, Any]]
) -> None:
    folder, result = stock
    base, pushed = hub.repositories[BASE], hub.repositories[STOCK]
    found = actions(result)
    large = {name for name in found if name.endswith(".safetensors")}
    same = {name for name in large if base.files.get(name) == pushed.files[name]}
    assert len(same) == 2
    assert {name for name, action in found.items() if action == "copy"} == same
    sent = {item.path.rsplit("/", 1)[1]: item.received for item in hub.log if item.method == "PUT"}
    for name in large:
        digest = pushed.commits[pushed.commit].entries[name].sha256
        assert sent.get(digest) == (None if name in same else len(pushed.files[name]))
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in ("README.md", PLAN_FILE, ".dcsurgery.json"):
            assert pushed.files[name] == path.read_bytes()
    commit = pushed.commits[pushed.commit]
    assert commit.title == "Add a Dense Connector (dci, stock) with dcsurgery 0.1.0"
    assert commit.parent is not None and len(pushed.commits) == 2


def test_pushing_again_sends_nothing(hub: Hub, pusher: Pusher, stock: Any, delta: Any) -> None:
    for (folder, result), option in ((stock, "--no-verify"), (delta, "--quiet")):
        repository = hub.repositories[result["repo_id"]]
        before = repository.commit
        hub.log.clear()
        done = pusher.run("push", folder, result["repo_id"], "--json", "--base-model", BASE, option)
        assert done.code == 0, done.err
        assert set(actions(done.json).values()) == {"skip"}
        assert done.json["commit"] is None and repository.commit == before
        assert not [item for item in hub.log if item.method == "PUT" or "/commit/" in item.path]


def test_a_model_of_the_hub_is_pushed_by_its_id(pusher: Pusher, delta: Any) -> None:
    done = pusher.run("push", "my-name/delta", "my-name/again", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert done.json["verified"] and actions(done.json)["dense_connector/plan.json"] == "add"


def test_a_dry_run_shows_the_table_and_changes_nothing(
    hub: Hub, pusher: Pusher, stock: tuple[Path, Any]
) -> None:
    hub.log.clear()
    done = pusher.run("push", stock[0], "my-name/new", "--dry-run", "--no-verify")
    assert done.code == 0, done.err
    assert "my-name/new" not in hub.repositories
    rows = [line.split() for line in done.out.split("\n") if len(line.split()) == 3]
    shown = {name: (action, int(size.replace(",", ""))) for name, action, size in rows[1:-1]}
    assert shown["model-00001-of-00003.safetensors"][0] == "copy"
    changed = stock[0] / "model-00003-of-00003.safetensors"
    assert shown[changed.name] == ("add", changed.stat().st_size)
    assert "nothing was sent" in done.out


def test_nothing_of_this_machine_is_published(
    hub: Hub, place: Path, stock: Any, delta: tuple[Path, Any]
) -> None:
    assert str(place) in (delta[0] / PLAN_FILE).read_text()
    for repo in (STOCK, f"{STOCK}-delta", "my-name/delta"):
        for name, data in hub.repositories[repo].files.items():
            assert str(place).encode() not in data, name
            assert b"hf_" not in data, name
    base = json.loads(hub.repositories["my-name/delta"].files[PLAN_FILE])["base"]
    assert (base["id"], base["folder"]) == (BASE, None)
    assert base["commit"] == hub.repositories[BASE].commit


def test_a_downloaded_push_verifies(
    hub: Hub, tmp_path: Path, tiny_siglip: Path, stock: Any, delta: Any
) -> None:
    for repo in (STOCK, f"{STOCK}-delta", "my-name/delta"):
        folder = write(tmp_path / repo, hub.repositories[repo].files)
        checks = structure_checks(open_pair(folder, tiny_siglip), deep=False)
        assert [check for check in checks if not check.passed] == []
        assert read_plan(folder).base.id == BASE


def test_a_model_that_does_not_verify_is_not_pushed(
    hub: Hub, pusher: Pusher, stock: tuple[Path, Any]
) -> None:
    broken = stock[0] / DELTA_FILE
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-4] + b"\0\0\x80\x3f")
    try:
        done = pusher.run("push", stock[0], "my-name/broken")
    finally:
        broken.write_bytes(whole)
    assert done.code == 3
    assert "FAILED" in done.out and "connector is as planned" in done.out
    assert "nothing was committed" in done.err
    assert "my-name/broken" not in hub.repositories
