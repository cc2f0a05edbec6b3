from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Run


@pytest.fixture(scope="module")
def converted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in stock form. Do not write into it."""
    from dcsurgery.surgery.convert import convert_checkpoint

    return convert_checkpoint(model, tmp_path_factory.mktemp("verify") / "out").output


@pytest.fixture
def damaged(converted: Path, tmp_path: Path) -> Path:
    """A copy with one changed byte in a tensor the plan did not name."""
    folder = tmp_path / "damaged"
    shutil.copytree(converted, folder)
    shard = folder / "model-00001-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    return folder


def test_verify_lists_every_check_and_exits_0(run: Run, converted: Path) -> None:
    result = run("verify", converted)
    assert result.exit_code == 0, result.stderr
    assert "FAILED" not in result.stdout
    for word in ("measured", "limit", "config.json", "features", "verified: all"):
        assert word in result.stdout


@pytest.mark.parametrize("options", [[], ["--json"], ["-q"]])
def test_a_failed_verification_exits_3_with_its_report_on_stdout(
    run: Run, damaged: Path, options: list[str]
) -> None:
    result = run("verify", damaged, *options)
    assert result.exit_code == 3
    assert result.stderr == "" if options else result.stderr.startswith("reads about ")
    if options == ["--json"]:
        report = json.loads(result.stdout)
        assert report["schema_version"] == 1 and report["passed"] is False
        assert [check["passed"] for check in report["checks"]].count(False) == 1
    else:
        assert "FAILED: 1 of" in result.stdout
        assert "differs from the base" in " ".join(result.stdout.split())


def test_options_of_verify_reach_the_verification(
    run: Run, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcsurgery.verification import Report

    asked = {}

    def verify(model: str, **options: object) -> Report:
        options.pop("announce")
        asked.update(options, model=model)
        return Report(output=model, base="base", form="stock", checks=())

    monkeypatch.setattr("dcsurgery.verification.verify_checkpoint", verify)
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    images = [item for picture in pictures for item in ("--image", picture)]
    more = ["--deep", "--logits", "--orientation", "raw"]
    result = run("verify", converted, "--against", "base", *images, *more)
    assert result.exit_code == 0, result.stderr
    assert asked == {
        "model": str(converted), "against": "base", "images": pictures, "deep": True,
        "logits": True, "towers": {}, "revision": None, "orientation": "raw",
    }  # fmt: skip
    assert run("verify", converted).exit_code == 0
    assert asked == {
        "model": str(converted), "against": None, "images": [], "deep": False, "logits": False,
        "towers": {}, "revision": None, "orientation": "exif",
    }  # fmt: skip


def test_a_picture_of_ones_own_is_verified_on(run: Run, converted: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (10, 200, 90)).save(tmp_path / "photo.png")
    assert run("verify", converted, "--image", tmp_path / "photo.png").exit_code == 0
    (tmp_path / "text.png").write_text("no picture")
    result = run("verify", converted, "--image", tmp_path / "text.png")
    assert result.exit_code == 1 and "not a picture" in result.stderr


def test_a_folder_without_a_plan_is_an_expected_failure(run: Run, model: Path) -> None:
    result = run("verify", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "dcsurgery convert" in result.stderr
