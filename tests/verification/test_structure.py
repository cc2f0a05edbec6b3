"""One thing damaged at a time: exactly the check that answers for it fails."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dcsurgery.checkpoint.contents import INDEX, Checkpoint
from dcsurgery.errors import CheckpointNotFoundError, DcSurgeryError
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.llava import Tower
from dcsurgery.verification import verify_checkpoint
from dcsurgery.verification.pair import open_pair
from dcsurgery.verification.structure import structure_checks
from tests.verification.checks import (
    BASE,
    BIAS,
    CHANGED,
    CONFIG,
    DELTA,
    LAYOUT,
    NORM,
    OTHERS,
    PROJECTOR,
    SIDE,
    failed,
    structure,
)
from tests.verification.damage import (
    Damage,
    copy_of,
    copy_tensor,
    drop_tensor,
    edit_delta,
    edit_json,
    edit_plan,
    flip,
    flip_tensor,
    move_tensor,
    relabel,
    remove,
    shard_of,
    write,
)

pytestmark = pytest.mark.slow

FIRST, SECOND = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
EMBEDDINGS = "language_model.model.embed_tokens.weight"
MATRIX = "dense_connector.weight"

HUB = "base files match the Hub"
STRUCTURE = {BASE, DELTA, LAYOUT, OTHERS, CHANGED, CONFIG, SIDE}


@pytest.fixture(scope="module")
def stock(tiny_siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded stock conversion with random tensors everywhere. Do not write into it."""
    folder = tmp_path_factory.mktemp("structure") / "stock"
    convert_checkpoint(tiny_siglip, folder, init="paper")
    return folder


@pytest.fixture(scope="module")
def delta(tiny_siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta with random tensors. Do not write into it."""
    folder = tmp_path_factory.mktemp("structure") / "delta"
    convert_checkpoint(tiny_siglip, folder, form="delta", init="paper")
    return folder


STOCK_DAMAGE: dict[str, tuple[Damage, str]] = {
    "a byte of an untouched tensor": (flip_tensor(NORM), OTHERS),
    "the last byte of a shard": (lambda f: flip(f / FIRST, -1), OTHERS),
    "a byte of the changed tensor": (flip_tensor(PROJECTOR), CHANGED),
    "a byte of a redrawn bias": (flip_tensor(BIAS), CHANGED),
    "a tensor removed": (drop_tensor(NORM), OTHERS),
    "a tensor moved to another shard": (move_tensor(NORM, FIRST), OTHERS),
    "a tensor's dtype relabelled": (relabel(NORM, "F32", "I32"), OTHERS),
    "a shard's metadata": (
        lambda f: save_file(load_file(f / SECOND), f / SECOND, metadata={}), OTHERS),
    "a tensor in two files": (copy_tensor(NORM, FIRST), LAYOUT),
    "a shard cut": (lambda f: os.truncate(f / SECOND, 100), LAYOUT),
    "a shard removed": (remove(SECOND), LAYOUT),
    "config.json removed": (remove("config.json"), LAYOUT),
    "config.json broken": (write("config.json", "{"), LAYOUT),
    "the index removed": (remove(INDEX), LAYOUT),
    "index total_size": (edit_json(INDEX, lambda v: v["metadata"].update(total_size=1)), LAYOUT),
    "index without total_size": (
        edit_json(INDEX, lambda v: v["metadata"].pop("total_size")), LAYOUT),
    "index names another shard": (
        edit_json(INDEX, lambda v: v["weight_map"].update({NORM: FIRST})), LAYOUT),
    "a single file beside the shards": (
        lambda f: shutil.copy(f / FIRST, f / "model.safetensors"), LAYOUT),
    "config key changed": (edit_json("config.json", lambda v: v.update(model_type="x")), CONFIG),
    "config key added": (edit_json("config.json", lambda v: v.update(extra=None)), CONFIG),
    "config key removed": (edit_json("config.json", lambda v: v.pop("pad_token_id")), CONFIG),
    "config key inside": (
        edit_json("config.json", lambda v: v["text_config"].update(rope_theta=1.0)), CONFIG),
    "layers in another order": (
        edit_json("config.json", lambda v: v["vision_feature_layer"].reverse()), CONFIG),
    "a side file changed": (write("tokenizer_config.json", "{}"), SIDE),
    "a side file removed": (remove("chat_template.json"), SIDE),
    "a side file added": (write("notes.txt", "x"), SIDE),
    "a stray weight file": (lambda f: shutil.copy(f / FIRST, f / "stray.safetensors"), SIDE),
    "a pickle": (write("pytorch_model.bin", "x"), SIDE),
    "a byte of the delta": (lambda f: flip(f / DELTA_FILE, -1), DELTA),
    "the delta removed": (remove(DELTA_FILE), DELTA),
    "the delta cut": (lambda f: os.truncate(f / DELTA_FILE, 50), DELTA),
    "a tensor too many in the delta": (edit_delta(lambda t: t.update(x=t[MATRIX] * 2)), DELTA),
    "the delta's shape": (
        edit_delta(lambda t: t.update({MATRIX: t[MATRIX].T.contiguous()})), DELTA),
    "the delta's dtype": (edit_delta(lambda t: t.update({MATRIX: t[MATRIX].half()})), DELTA),
    "planned hash of the connector": (edit_plan(lambda v: v["delta"][0].update(sha256="0")), DELTA),
    "planned hash of the changed tensor": (
        edit_plan(lambda v: v["changed"][0].update(sha256="0")), CHANGED),
    "planned shape of the changed tensor": (
        edit_plan(lambda v: v["changed"][0].update(shape=[1, 2])), CHANGED),
    "planned groups": (
        edit_plan(lambda v: v["layout"].update(blocks=[{"layers": [0, 2]}, {"layers": [1]}])),
        CHANGED,
    ),
    "planned stock layers": (edit_plan(lambda v: v.update(stock_layers=[0, 1])), BASE),
    "planned hash of the base's projector": (
        edit_plan(lambda v: v["relies_on"].update({PROJECTOR: "0"})), BASE),
    "planned tensor the base lacks": (
        edit_plan(lambda v: v["relies_on"].update({"no.such": "0"})), BASE),
    "planned hash of the base's config": (
        edit_plan(lambda v: v["base"].update(config_sha256="0")), BASE),
    "planned file of the base": (edit_plan(lambda v: v["base"]["files"].pop(FIRST)), BASE),
    "planned anatomy": (edit_plan(lambda v: v["anatomy"].update(dropped_tokens=1)), BASE),
    "planned feature layer": (edit_plan(lambda v: v.update(feature_layers=[2])), BASE),
    "planned group more": (
        edit_plan(lambda v: v["layout"]["blocks"].append({"layers": [0]})),
        BASE,
    ),
    "planned dtype": (edit_plan(lambda v: v["delta"][0].update(dtype="I8")), BASE),
    "planned connector gone": (edit_plan(lambda v: v["delta"].pop(0)), BASE),
    "nothing planned to change": (edit_plan(lambda v: v.update(changed=[])), BASE),
    "more planned to change": (
        edit_plan(lambda v: v["changed"].append({**v["changed"][0], "name": NORM})), BASE),
}  # fmt: skip


@pytest.mark.parametrize("name", STOCK_DAMAGE)
def test_damage_to_a_stock_folder_fails_its_check_alone(
    name: str, stock: Path, tmp_path: Path
) -> None:
    damage, expected = STOCK_DAMAGE[name]
    folder = copy_of(stock, tmp_path / "stock")
    assert structure(folder) == set()
    damage(folder)
    report = verify_checkpoint(folder)
    assert failed(report) == {expected}
    assert {check.name for check in report.checks} <= STRUCTURE


DELTA_DAMAGE: dict[str, tuple[Damage, str]] = {
    "a byte of the delta": (lambda f: flip(f / DELTA_FILE, -1), DELTA),
    "the delta removed": (remove(DELTA_FILE), DELTA),
    "a config beside it": (write("config.json", "{}"), LAYOUT),
    "base weights beside it": (write(SECOND, "x"), LAYOUT),
    "a dangling link beside it": (lambda f: (f / INDEX).symlink_to("nowhere"), LAYOUT),
    "planned hash of the base's projector": (
        edit_plan(lambda v: v["relies_on"].update({PROJECTOR: "0"})), BASE),
}  # fmt: skip


@pytest.mark.parametrize("name", DELTA_DAMAGE)
def test_damage_to_a_delta_fails_its_check_alone(name: str, delta: Path, tmp_path: Path) -> None:
    damage, expected = DELTA_DAMAGE[name]
    folder = copy_of(delta, tmp_path / "delta")
    assert structure(folder) == set()
    damage(folder)
    assert failed(verify_checkpoint(folder)) == {expected}


BASE_DAMAGE: dict[str, tuple[Damage, str]] = {
    "config": (edit_json("config.json", lambda v: v.update(extra=1)), BASE),
    "header": (drop_tensor(NORM), BASE),
    "projector": (flip_tensor(PROJECTOR), BASE),
    "another tensor": (flip_tensor(EMBEDDINGS), OTHERS),
    "side file": (write("tokenizer_config.json", "{}"), SIDE),
}


@pytest.mark.parametrize("name", BASE_DAMAGE)
def test_a_base_that_changed_is_reported(
    name: str, stock: Path, tiny_siglip: Path, tmp_path: Path
) -> None:
    damage, expected = BASE_DAMAGE[name]
    base = copy_of(tiny_siglip, tmp_path / "base")
    assert structure(stock, base) == set()
    damage(base)
    report = verify_checkpoint(stock, against=base)
    assert failed(report) == {expected}
    assert report.base == str(base)


def test_another_model_is_not_the_base(stock: Path, tiny_clip: Path) -> None:
    assert failed(verify_checkpoint(stock, against=tiny_clip)) == {BASE}


def test_details_name_what_differs(stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    flip_tensor(NORM)(folder)
    (check,) = [c for c in verify_checkpoint(folder).checks if not c.passed]
    assert NORM in check.detail


def test_many_problems_are_counted(stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    for index in range(9):
        (folder / f"extra-{index}.txt").write_text("x")
    (check,) = [c for c in verify_checkpoint(folder).checks if not c.passed]
    assert "and 4 more" in check.detail


def test_what_is_missing_is_an_error_not_a_report(stock: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        verify_checkpoint(tmp_path / "nowhere")
    assert "convert" in caught.value.hint
    folder = copy_of(stock, tmp_path / "stock")
    edit_plan(lambda v: v["base"].update(folder=str(tmp_path / "gone")))(folder)
    with pytest.raises(CheckpointNotFoundError) as caught:
        verify_checkpoint(folder)
    assert "--against" in caught.value.hint
    (folder / PLAN_FILE).unlink()
    with pytest.raises(CheckpointNotFoundError):
        verify_checkpoint(folder)


def test_the_report_has_exactly_these_keys(stock: Path, tiny_siglip: Path) -> None:
    report = verify_checkpoint(stock, logits=True, deep=True)
    values = report.to_dict()
    assert set(values) == {"schema_version", "passed", "output", "base", "form", "checks"}
    assert (values["schema_version"], values["passed"], values["form"]) == (1, True, "stock")
    assert (values["output"], values["base"]) == (str(stock), str(tiny_siglip))
    keys = {"name", "passed", "measured", "limit", "detail"}
    assert all(set(item) == keys for item in values["checks"])
    names = [item["name"] for item in values["checks"]]
    assert len(names) == len(set(names)) and STRUCTURE < set(names)


# --- hard links and the Hub ---


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_hard_linked_shards_verify(deep: bool, tiny_siglip: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_siglip, tmp_path / "base")
    out = tmp_path / "out"
    convert_checkpoint(base, out, link=True)
    assert os.path.samefile(base / FIRST, out / FIRST)
    assert not os.path.samefile(shard_of(base, PROJECTOR), shard_of(out, PROJECTOR))
    assert verify_checkpoint(out, deep=deep).passed
    # A file of its own in place of the link: from then on its bytes are compared.
    shutil.copy(base / FIRST, tmp_path / "copy")
    flip(tmp_path / "copy", -1)
    (tmp_path / "copy").replace(out / FIRST)
    assert structure(out, deep=deep) == {OTHERS}


def test_linked_files_are_read_in_deep_mode_only(
    tiny_siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = copy_of(tiny_siglip, tmp_path / "base"), tmp_path / "out"
    convert_checkpoint(base, out, link=True)
    pair = open_pair(out, None)
    read: list[str] = []

    def note(checkpoint: Checkpoint, name: str) -> Iterator[bytes]:
        if checkpoint.ref.folder == out:
            read.append(checkpoint.file_of(name).name)
        return real(checkpoint, name)

    real = Checkpoint.tensor_chunks
    monkeypatch.setattr(Checkpoint, "tensor_chunks", note)
    assert all(check.passed for check in structure_checks(pair, deep=False))
    assert FIRST not in read
    assert all(check.passed for check in structure_checks(pair, deep=True))
    assert FIRST in read


def hub_cache(base: Path, root: Path) -> Path:
    """A Hub cache that holds `base`: snapshot -> blob named by its SHA-256."""
    snapshot = root / "models--org--name" / "snapshots" / ("c" * 40)
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in base.iterdir():
        name = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blobs / name)
        (snapshot / path.name).symlink_to(f"../../blobs/{name}")
    return snapshot


def test_cached_files_are_compared_with_the_hubs_digests(tiny_siglip: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(tiny_siglip, tmp_path / "hub")
    convert_checkpoint(snapshot, tmp_path / "sound")
    report = verify_checkpoint(tmp_path / "sound", deep=True)
    assert report.passed
    (check,) = [check for check in report.checks if check.name == HUB]
    assert "3 of 3" in check.measured
    # Damaged before it was converted: the output is as bad as the base.
    flip((snapshot / FIRST).resolve(), -1)
    convert_checkpoint(snapshot, tmp_path / "out")
    assert failed(verify_checkpoint(tmp_path / "out", deep=True)) == {HUB}
    assert verify_checkpoint(tmp_path / "out").passed


# --- what must pass ---

SOUND = [
    ("clip", "float32", 1, "dci"),
    ("clip", "bfloat16", 3, "sci"),
    ("clip", "float16", 3, "dci"),
    ("siglip", "float32", 3, "sci"),
    ("siglip", "bfloat16", 1, "dci"),
    ("siglip", "float16", 1, "sci"),
    ("pixtral", "float32", 1, "sci"),
    ("pixtral", "bfloat16", 3, "dci"),
    ("pixtral", "float16", 1, "dci"),
]


@pytest.mark.parametrize(("tower", "dtype", "shards", "kind"), SOUND)
def test_untouched_conversions_verify(
    tower: Tower, dtype: str, shards: int, kind: str, tmp_path: Path
) -> None:
    base = write_tiny_llava(tmp_path / "base", tower, dtype=dtype, shards=shards)
    for form in ("stock", "delta"):
        for init in ("preserve", "paper"):
            out = tmp_path / f"{form}-{init}"
            convert_checkpoint(base, out, connector=kind, form=form, init=init)
            report = verify_checkpoint(out, logits=init == "preserve")
            assert failed(report) == set(), report
            names = {check.name for check in report.checks}
            assert ("features: branch against base" in names) == (init == "preserve")
            assert ("features: fold against branch" in names) == (form == "stock")
            (connector,) = [check for check in report.checks if check.name == DELTA]
            assert ("not zero" in connector.measured) == (init == "paper")


def test_errors_carry_hints(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DcSurgeryError) as caught:
        verify_checkpoint(tmp_path / "file")
    assert len(caught.value.hint) > 10
