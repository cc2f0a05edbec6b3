"""The demo tells its story offline and leaves a checkpoint that plain transformers loads."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dcsurgery.demo import run_demo
from dcsurgery.errors import OutputExistsError
from dcsurgery.inspection import inspect_checkpoint
from dcsurgery.records import PLAN_FILE, read_plan
from dcsurgery.verification import verify_checkpoint
from tests.architectures.cases import load


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """The demo's own new folder, what it returned, and what it said."""
    home = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("the demo went online")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(tempfile, "tempdir", str(home))
        stock = run_demo(None, said.append)
    (work,) = home.glob("dcsurgery-demo-*")
    return work, stock, said


def test_the_story_names_what_it_made(told: tuple[Path, Path, list[str]]) -> None:
    work, stock, said = told
    text = "\n".join(said)
    assert stock.is_relative_to(work) and str(work) in text and stock.name in text
    for word in ("inspect", "convert", "verify", "dci", "vision_feature_layer"):
        assert word in text
    plan = read_plan(stock)
    assert f"{plan.new_parameters:,}" in text
    assert plan.changed[0].name in text and plan.loader in text
    assert "FAILED" not in text


def test_plain_transformers_loads_what_it_returns(told: tuple[Path, Path, list[str]]) -> None:
    work, stock, _ = told
    plan = read_plan(stock)
    model = load(stock)
    assert model.config.vision_feature_layer == plan.stock_layers
    pixels = torch.zeros(1, 3, 32, 32)
    base = load(Path(str(plan.base.folder)))
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels)
        expected = base.get_image_features(pixel_values=pixels)
    pooled = [torch.cat(list(getattr(item, "pooler_output", item))) for item in (found, expected)]
    assert (pooled[0] - pooled[1]).abs().max() <= 1e-5
    assert Path(str(plan.base.folder)).is_relative_to(work.resolve())


def test_both_forms_are_left_behind_and_verify(told: tuple[Path, Path, list[str]]) -> None:
    work, _, _ = told
    converted = {path.parents[1] for path in work.rglob(PLAN_FILE)}
    assert {read_plan(folder).form for folder in converted} == {"stock", "delta"}
    assert all(verify_checkpoint(folder).passed for folder in converted)
    (base,) = {path.parent for path in work.rglob("config.json")} - converted
    assert inspect_checkpoint(base).anatomy.tower.depth == 24


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    said: list[str] = []
    for work in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(OutputExistsError) as caught:
            run_demo(work, said.append)
        assert "--work-dir" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"] and said == []
