"""Original LLaVA and published Dense Connector checkpoints against the reference's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dcsurgery
from dcsurgery.surgery.plan_file import CONNECTOR_TENSOR, DELTA_FILE, PLAN_FILE
from dcsurgery.tiny.llava import Tower
from tests.architectures.cases import load
from tests.closeness import PAPER, assert_near
from tests.golden.numbers import TOWERS, check_path, golden, image_features
from tests.originals.originals import (
    golden_features,
    golden_original,
    golden_tower,
    spliced_logits,
)
from tests.surgery import digests

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest) -> Tower:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def named(tower: Tower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tower's own repository; CLIP's is pickled, as the published one is."""
    folder = tmp_path_factory.mktemp("towers") / tower
    return golden_tower(folder, tower, pickled=tower == "clip")


@pytest.fixture(scope="module")
def stock(tower: Tower, named: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An original without its tower, in pickled shards, and its stock form."""
    folder = tmp_path_factory.mktemp(tower)
    base = golden_original(
        folder / "base", tower, "dci", named, wide=False, inside=False, pickled=True, shards=2
    )
    dcsurgery.convert(base, folder / "stock", form="stock")
    return base, folder / "stock"


@pytest.fixture(scope="module")
def inside(tower: Tower, named: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in one safetensors file, the tower in it."""
    folder = tmp_path_factory.mktemp(tower) / "base"
    return golden_original(folder, tower, "dci", named, wide=False)


def test_an_original_becomes_stock_with_the_references_features(
    tower: Tower, stock: tuple[Path, Path]
) -> None:
    model = load(stock[1])
    found = image_features(model, golden(f"llava_dc_{tower}")[0]["pixel_values"])
    wanted = golden_features(tower, "dci")
    assert_near(found.reshape(wanted.shape), wanted, PAPER)


def test_its_logits_are_those_of_its_language_model_with_the_features_spliced_in(
    tower: Tower, stock: tuple[Path, Path], inside: Path
) -> None:
    model = load(stock[1])
    pixels = golden(f"llava_dc_{tower}")[0]["pixel_values"][:1]
    image = image_features(model, pixels)
    image = image.reshape(-1, image.shape[-1])
    config = json.loads((inside / "config.json").read_bytes())
    tensors = load_file(inside / "model.safetensors")
    wanted = spliced_logits(tensors, config, [1, 7, None, 9, 11], image)
    token = model.config.image_token_id
    ids = torch.tensor([[1, 7, *[token] * len(image), 9, 11]])
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=pixels).logits
    rows = config["vocab_size"]
    assert token == rows and model.config.text_config.vocab_size == (rows + 2 + 63) // 64 * 64
    assert_near(found[..., :rows], wanted, PAPER)
    # A padded row gives the mean of all logits: it never wins.
    mean = found[..., :rows].mean(-1, keepdim=True).expand_as(found[..., rows:])
    assert_near(found[..., rows:], mean, PAPER)


def test_every_tensor_keeps_its_bytes_wherever_it_came_from(
    tower: Tower, stock: tuple[Path, Path], inside: Path, tmp_path: Path
) -> None:
    dcsurgery.convert(inside, tmp_path / "stock")
    found, other = digests(stock[1]), digests(tmp_path / "stock")
    assert found == other
    old = digests(inside)
    kept = {n for n in old if "embed_tokens" not in n and "lm_head" not in n and "tor.0.w" not in n}
    assert {old[name] for name in kept} <= set(found.values())


@pytest.mark.parametrize("form", ["stock", "delta"])
@pytest.mark.parametrize("kind", ["dci", "sci", "sti"])
def test_a_published_dense_connector_reproduces_the_reference(
    tower: Tower, named: Path, kind: str, form: str, tmp_path: Path
) -> None:
    base = golden_original(tmp_path / "base", tower, kind, named, wide=True)
    if kind == "sti" and form == "stock":
        with pytest.raises(dcsurgery.errors.PlanError, match="another number of image tokens"):
            dcsurgery.convert(base, tmp_path / "out", form=form)
        return
    done = dcsurgery.convert(base, tmp_path / "out", form=form)
    assert (done.plan.kind, done.plan.init) == (kind, "published")
    plain = load if form == "stock" else dcsurgery.load
    check_path(plain(tmp_path / "out"), tower, kind)


def test_load_model_loads_an_original_as_it_is(tower: Tower, named: Path, tmp_path: Path) -> None:
    base = golden_original(tmp_path / "base", tower, "sci", named, wide=True, inside=False)
    check_path(dcsurgery.load(base), tower, "sci")


def test_the_results_verify(
    tower: Tower, stock: tuple[Path, Path], named: Path, tmp_path: Path
) -> None:
    base = golden_original(tmp_path / "base", tower, "dci", named, wide=True)
    dcsurgery.convert(base, tmp_path / "out")
    for folder in (stock[1], tmp_path / "out"):
        report = dcsurgery.verify(folder)
        assert report.passed, [check for check in report.checks if not check.passed]


def test_verify_sees_a_connector_that_is_not_the_published_one(
    tower: Tower, named: Path, tmp_path: Path
) -> None:
    base = golden_original(tmp_path / "base", tower, "dci", named, wide=True)
    dcsurgery.convert(base, tmp_path / "out", form="delta")
    path = tmp_path / "out" / DELTA_FILE
    old = digests(path.parent)[CONNECTOR_TENSOR]
    save_file({CONNECTOR_TENSOR: 2 * load_file(path)[CONNECTOR_TENSOR]}, path)
    plan = tmp_path / "out" / PLAN_FILE
    plan.write_text(plan.read_text().replace(old, digests(path.parent)[CONNECTOR_TENSOR]))
    report = dcsurgery.verify(tmp_path / "out")
    assert [check.detail for check in report.checks if not check.passed] == [
        "dense_connector.weight is not the base's own connector"
    ]


def test_verify_sees_a_tower_that_is_not_the_named_one(
    tower: Tower, stock: tuple[Path, Path], tmp_path: Path
) -> None:
    _, out = stock
    damaged = tmp_path / "out"
    import shutil

    shutil.copytree(out, damaged)
    names: dict[str, Any] = json.loads((out / "model.safetensors.index.json").read_bytes())
    one = "vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias"
    path = damaged / names["weight_map"][one]
    tensors = load_file(path)
    raw = tensors[one].numpy().tobytes()
    data = path.read_bytes().replace(raw, bytes(len(raw)), 1)
    path.write_bytes(data)
    report = dcsurgery.verify(damaged)
    assert not report.passed
    assert any(one in check.detail for check in report.checks)
