"""`recipe pin`: what the Hub on localhost has today stands in the file, and is what runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dcsurgery.cli.main import app
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.recipes.catalog import load_recipe
from dcsurgery.recipes.pin import ADDRESS, pin_recipe
from tests.hub import Hub, running_hub
from tests.hub.state import Commit, Entry

RECIPE = """\
# A story.
# Command: dcsurgery recipe run mine --data-dir DATA
name: mine
title: "Mine"
source: "here"
needs:
  rows.json: "https://huggingface.co/datasets/org/rows/resolve/main/rows.json, beside it"
  old.json: "https://huggingface.co/datasets/org/rows/resolve/v1/rows.json"
  pictures: "all of https://huggingface.co/datasets/org/rows. Unpack it."
  more: "http://images.cocodataset.org/zips/train2017.zip (see https://huggingface.co/docs/hub)"
base: {model: org/model}
verify: null
connector: {kind: dci, form: delta}
cost: {gpu: none, hours: 1, disk_gb: 1, source: guessed}
smoke: {model: llava}
"""


@pytest.fixture(scope="module")
def hub(tiny_clip: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.add("org/model", {path.name: path.read_bytes() for path in tiny_clip.iterdir()})
        rows = hub.add("datasets/org/rows", {"rows.json": b"[]"})
        rows.refs["v1"] = rows.commit
        rows.add(Commit({"rows.json": Entry(b"[1]", False, None)}, parent=rows.commit))
        yield hub


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Any:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    env = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip

    def call(*words: str) -> Any:
        command = [sys.executable, "-m", "dcsurgery", "recipe", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return call


@pytest.mark.slow
def test_the_commits_of_today_are_what_a_run_uses_tomorrow(
    run: Any, hub: Hub, tmp_path: Path
) -> None:
    done = run("pin", "mine.yaml", "-o", "pinned.yaml", "--json")
    assert done.returncode == 0, done.stderr
    model, rows = hub.repositories["org/model"], hub.repositories["datasets/org/rows"]
    today = model.commit
    found = json.loads(done.stdout)
    assert found["commits"] == {
        "org/model": today, "datasets/org/rows": rows.commit,
        "datasets/org/rows at v1": rows.refs["v1"],
    }  # fmt: skip
    pinned = load_recipe(str(tmp_path / "pinned.yaml"))
    assert pinned.base.revision == today
    site = "https://huggingface.co/datasets/org/rows"
    assert pinned.needs == {
        "rows.json": f"{site}/resolve/{rows.commit}/rows.json, beside it",
        "old.json": f"{site}/resolve/{rows.refs['v1']}/rows.json",
        "pictures": f"all of {site}/tree/{rows.commit}. Unpack it.",
        "more": yaml.safe_load(RECIPE)["needs"]["more"],
    }
    opening = (tmp_path / "pinned.yaml").read_text().splitlines()[:2]
    assert opening == ["# A story.", "# Command: dcsurgery recipe run pinned.yaml --data-dir DATA"]
    changed = dict(model.commits[today].entries)
    changed["README.md"] = Entry(b"# Another", False, None)
    model.add(Commit(changed, parent=today))
    assert model.commit != today
    done = run("run", "pinned.yaml", "--work-dir", "run")
    assert done.returncode == 0, done.stderr
    lock = yaml.safe_load((tmp_path / "run/recipe.lock.yaml").read_text())
    assert lock["base"]["commit"] == today == lock["recipe"]["base"]["revision"]
    assert lock["recipe"]["needs"]["rows.json"].count(rows.commit) == 1
    again = run("pin", "pinned.yaml", "-o", "twice.yaml")
    assert again.returncode == 0, again.stderr
    assert load_recipe(str(tmp_path / "twice.yaml")).base.revision == today, "a commit stays"


@pytest.fixture
def stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    info = SimpleNamespace(sha="0" * 40)
    for name in ("model_info", "dataset_info"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", lambda *words, **more: info)


@pytest.mark.usefixtures("stubbed")
@pytest.mark.parametrize("place", ["a\\q.yaml", "C:\\1\\new.yaml", "sp ace/p.yaml", "it's a.yaml"])
def test_any_path_is_a_word_of_the_commands_that_are_shown(place: str) -> None:
    words = ["recipe", "pin", "llava-1.5-7b-dci", "-o", place, "--data-dir", "my data"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    run = ["dcsurgery", "recipe", "run", place, "--data-dir"]
    assert shlex.split(done.stderr.partition("next:\n")[2]) == [*run, "my data"]
    again = ["recipe", "pin", place, "-o", "again.yaml"]
    assert CliRunner().invoke(app, again).exit_code == 0
    for file in (place, "again.yaml"):
        (line,) = re.findall("# Command: (.*)", Path(file).read_text())
        assert shlex.split(line) == [*run[:3], file, "--data-dir", "DATA"]


@pytest.mark.usefixtures("stubbed")
def test_every_address_that_is_not_pinned_is_named(tmp_path: Path) -> None:
    found = pin_recipe("llava-1.5-7b-dci", tmp_path / "pinned.yaml")
    needs = load_recipe("llava-1.5-7b-dci").needs
    assert found.left and {line.partition(":")[0] for line in found.left} == {
        name for name, text in needs.items() if "huggingface.co/datasets" not in text
    }
    for place in ("images.cocodataset.org", "cs.stanford.edu", "dl.fbaipublicfiles.com"):
        assert any(place in line for line in found.left)
    Path("mine.yaml").write_text(RECIPE)
    (line,) = pin_recipe("mine.yaml", "mine-pinned.yaml").left
    assert "train2017.zip" in line
    told = pin_recipe("mine.yaml", "told.yaml", changes=("needs.x=by a script",)).left
    assert told[-1] == "x: no commit of the Hub: by a script"


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_named(run: Any, tmp_path: Path) -> None:
    for change, words in (
        ("base.model=org/none", "there is no model org/none on the Hub"),
        ("base.revision=v9", "org/model has no revision 'v9'"),
        ("needs.x=https://hf.co/datasets/org/none", "there is no data set org/none"),
    ):
        done = run("pin", "mine.yaml", "-o", "pinned.yaml", "--set", change)
        assert done.returncode == 1 and words in done.stderr, done.stderr
        assert "hint: " in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "pinned.yaml").exists()


def test_it_refuses_what_it_cannot_pin(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(RECIPE)
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE is set"):
        pin_recipe(str(mine), tmp_path / "pinned.yaml")
    with pytest.raises(RequestError, match="makes its own model"):
        pin_recipe("tiny", tmp_path / "pinned.yaml")
    with pytest.raises(RequestError, match=r"sweeps over base\.model"):
        pin_recipe(str(mine), tmp_path / "p.yaml", changes=("sweep={base.model: [a/b, a/c]}",))
    with pytest.raises(OutputExistsError):
        pin_recipe(str(mine), mine)
    for below in ("p.yaml", "deeper/p.yaml"):
        with pytest.raises(RequestError, match=r"mine\.yaml is not a folder"):
            pin_recipe(str(mine), mine / below)
    mine.write_text("lock_version: 1\n")
    with pytest.raises(RequestError, match="pinned already"):
        pin_recipe(str(mine), tmp_path / "pinned.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://huggingface.co/datasets/a/b.c/resolve/main/x.zip", ("datasets/a/b.c", "main")),
        ("(https://hf.co/datasets/a/b-c)", ("datasets/a/b-c", None)),
        ("https://huggingface.co/a/b/tree/v1.5, all", ("a/b", "v1.5")),
        ("https://huggingface.co/a/b", None),
        ("https://huggingface.co/spaces/a/b/tree/main", None),
        ("https://example.org/datasets/a/b", None),
    ],
)
def test_which_addresses_are_of_the_hub(text: str, found: tuple[str, str | None] | None) -> None:
    match = ADDRESS.search(text)
    assert (match and (match["data"] or match["model"], match["rev"] or match["own"])) == found
