"""The command line on a Hub model, against a Hub on localhost."""

from __future__ import annotations

import json
from pathlib import Path

import dcsurgery
from tests.hub import Hub, running_hub
from tests.training.data import write_data

from .conftest import Run


def to_hub(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }


def test_a_hub_model_is_inspected_and_planned_without_its_weights(
    spawn: Run, model: Path, tmp_path: Path
) -> None:
    with running_hub() as hub:
        commit = hub.add("org/model", {path.name: path.read_bytes() for path in model.iterdir()})
        env = to_hub(hub, tmp_path)
        inspected = spawn("inspect", "org/model", env=env)
        assert inspected.returncode == 0, inspected.stderr
        assert inspected.stdout.startswith(f"org/model at {commit.commit[:12]}\n")
        planned = spawn("convert", "org/model", "-o", tmp_path / "out", "--dry-run", env=env)
        total = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        assert f"{total / 1e3:.0f} kB into the Hub cache" in planned.stdout
        assert hub.sent(".safetensors") < total / 2
        done = spawn(
            "convert", "org/model", "-o", tmp_path / "out", "--form", "delta", "--json", env=env
        )
        assert done.stderr == ""
        assert json.loads(done.stdout)["plan"]["base"]["commit"] == commit.commit
        missing = spawn("inspect", "org/none", "--revision", "v2", env=env)
        assert missing.returncode == 1 and missing.stderr.startswith("error: ")
    assert not [path for path in (tmp_path / "hf").rglob("*.safetensors")]


def test_a_hub_model_is_probed_and_the_answer_is_good_for_a_copy_of_it(
    spawn: Run, run: Run, tiny_clip: Path, tmp_path: Path
) -> None:
    data, answer = write_data(tmp_path / "rows", 25), tmp_path / "probe.json"
    with running_hub() as hub:
        commit = hub.add(
            "org/model", {file.name: file.read_bytes() for file in tiny_clip.iterdir()}
        )
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        probed = spawn("probe", "org/model", "--data", data, "--json", "-o", answer, env=env)
    assert probed.returncode == 0, probed.stderr
    report = json.loads(probed.stdout)
    assert (report["model"], report["base"]["commit"]) == ("org/model", commit.commit)
    refused = run("convert", tiny_clip, "-o", tmp_path / "out", "--layers", f"@{answer}")
    # It is the same model: what is refused is the operation.
    assert refused.exit_code == 1 and "says: do not operate" in refused.stderr


def test_a_converted_hub_model_is_verified(spawn: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dcsurgery.convert(model, out, form="delta")
    paths = [path for path in out.rglob("*") if path.is_file()]
    with running_hub() as hub:
        hub.add("org/dense", {str(path.relative_to(out)): path.read_bytes() for path in paths})
        env = to_hub(hub, tmp_path)
        found = spawn("verify", "org/dense", "--revision", "main", env=env)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("org/dense: delta form of ")
