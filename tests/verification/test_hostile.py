"""Whatever a folder holds, verify answers with a report or with an error meant for people."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.checkpoint.contents import INDEX
from dcsurgery.errors import DcSurgeryError, VerificationError
from dcsurgery.loading.load import load_model
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE, read_plan
from dcsurgery.verification import Report, verify_checkpoint
from dcsurgery.verification.pair import open_pair
from dcsurgery.verification.structure import structure_checks
from tests.verification.damage import Damage, copy_of, edit_json, remove, write

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1.5, "", "x", "\0", "../x", [], [[]], {}, [None], {"a": 1},
)  # fmt: skip
SEEDS = 100


@pytest.fixture(scope="module")
def stock(tiny_siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "stock"
    convert_checkpoint(tiny_siglip, folder, init="paper")
    return folder


def answer(folder: Path, against: Path | None = None) -> Report | DcSurgeryError:
    """Verify; anything but a report or an error with a hint fails the test by itself."""
    try:
        report = verify_checkpoint(folder, against=against)
    except DcSurgeryError as error:
        assert len(error.hint) > 10 and 0 < len(error.message) < 2000
        return error
    json.dumps(report.to_dict())
    return report


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from places(value[key], (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def test_plans_with_one_strange_value(stock: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    text = (folder / PLAN_FILE).read_text()
    draw = random.Random(1)
    every = list(places(json.loads(text)))
    for _ in range(SEEDS):
        values = json.loads(text)
        place, new = draw.choice(every), draw.choice(STRANGE)
        print(place, "=", repr(new))  # shown when the test fails
        put(values, place, new)
        (folder / PLAN_FILE).write_text(json.dumps(values))
        try:
            checks = structure_checks(open_pair(folder, tiny_siglip), deep=False)
            if all(check.passed for check in checks):
                answer(folder, tiny_siglip)
        except DcSurgeryError as error:
            assert error.hint


def test_deltas_whose_plan_has_one_strange_value_load_or_are_refused(
    tiny_clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "delta"
    convert_checkpoint(tiny_clip, folder, form="delta")
    text = (folder / PLAN_FILE).read_text()
    draw = random.Random(9)
    keys = ("anatomy", "layout", "feature_layers", "delta", "relies_on", "architecture", "form")
    every = [place for place in places(json.loads(text)) if place[0] in keys]
    for _ in range(40):
        values = json.loads(text)
        place, new = draw.choice(every), draw.choice(STRANGE)
        print(place, "=", repr(new))  # shown when the test fails
        put(values, place, new)
        (folder / PLAN_FILE).write_text(json.dumps(values))
        try:
            load_model(folder, base=tiny_clip)
        except DcSurgeryError as error:
            assert error.hint


@pytest.mark.parametrize("name", [INDEX, "config.json", DELTA_FILE, "first", "last", PLAN_FILE])
def test_files_with_bytes_changed_anywhere(
    name: str, stock: Path, tiny_siglip: Path, tmp_path: Path
) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    path = folder / {"first": shards[0], "last": shards[-1]}.get(name, name)
    raw = path.read_bytes()
    draw = random.Random(name)
    for _ in range(15):
        edited = bytearray(raw)
        # Mostly in the header, where a byte means most.
        at = draw.randrange(min(len(raw), draw.choice((8, 400, len(raw)))))
        kind = draw.randrange(3)
        if kind == 0:
            edited[at] = draw.randrange(256)
        elif kind == 1:
            del edited[at:]
        else:
            edited[at:at] = draw.randbytes(draw.randrange(1, 9))
        path.write_bytes(edited)
        found = answer(folder, tiny_siglip)
        if bytes(edited) != raw and name not in (PLAN_FILE, "config.json", INDEX):
            assert isinstance(found, DcSurgeryError) or not found.passed, (kind, at)


def fifo(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def folder_instead(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


HOSTILE: dict[str, Damage] = {
    "plan is a FIFO": fifo(PLAN_FILE),
    "delta is a FIFO": fifo(DELTA_FILE),
    "config is a FIFO": fifo("config.json"),
    "plan is a folder": folder_instead(PLAN_FILE),
    "delta is a folder": folder_instead(DELTA_FILE),
    "index is a folder": folder_instead(INDEX),
    "a link outside": lambda folder: (folder / "out.json").symlink_to("/etc/hostname"),
    "a loop": lambda folder: (folder / "again").symlink_to("."),
    "a name with escapes": write("\x1b[2J.txt", "x"),
    "an index that leaves": edit_json(
        INDEX, lambda v: v["weight_map"].update({"a": "../../x.safetensors"})
    ),
    "a nested config": write("config.json", '{"a":' + "[" * 100_000),
    "another class": edit_json("config.json", lambda v: v.update(architectures=["Bert"])),
    "no weights": lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
    "no plan": remove(PLAN_FILE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders(name: str, stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    HOSTILE[name](folder)
    found = answer(folder)
    assert isinstance(found, DcSurgeryError) or not found.passed


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bases(name: str, stock: Path, tmp_path: Path) -> None:
    base = copy_of(stock, tmp_path / "base")
    HOSTILE[name](base)
    found = answer(stock, base)
    assert isinstance(found, DcSurgeryError) or not found.passed


def test_a_plan_of_an_unknown_architecture(stock: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    edit_json(PLAN_FILE, lambda v: v.update(architecture="nope"))(folder)
    found = answer(folder, tiny_siglip)
    assert isinstance(found, Report) and not found.passed


UNRUNNABLE: dict[str, Damage] = {
    "no heads": edit_json(
        "config.json", lambda v: v["vision_config"].update(num_attention_heads=0)
    ),
    "heads that do not divide": edit_json(
        "config.json", lambda v: v["vision_config"].update(num_attention_heads=5)
    ),
    "an unknown activation": edit_json(
        "config.json", lambda v: v.update(projector_hidden_act="nope")
    ),
    "a text model of another size": edit_json(
        "config.json", lambda v: v["text_config"].update(vocab_size=7)
    ),
    "an unknown text model": edit_json(
        "config.json", lambda v: v["text_config"].update(model_type="nope")
    ),
    "values of another type": edit_json(
        "config.json", lambda v: v["text_config"].update(num_hidden_layers="two")
    ),
    "another model type": edit_json("config.json", lambda v: v.update(model_type="bert")),
    "no such model type": edit_json("config.json", lambda v: v.update(model_type=[1])),
}


@pytest.mark.parametrize("name", UNRUNNABLE)
def test_a_base_that_transformers_cannot_run_is_an_error(
    name: str, tiny_siglip: Path, tmp_path: Path
) -> None:
    base = copy_of(tiny_siglip, tmp_path / "base")
    UNRUNNABLE[name](base)
    convert_checkpoint(base, tmp_path / "out")
    with pytest.raises(VerificationError) as caught:
        verify_checkpoint(tmp_path / "out", logits=True)
    assert "transformers" in caught.value.message + caught.value.hint


def test_a_plan_that_names_a_hostile_base(stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    for where in ("/dev/null", "/proc/self/mem", "/", str(folder), "\0", "x" * 5000, "a/b"):
        edit_json(PLAN_FILE, lambda v, where=where: v["base"].update(folder=where))(folder)
        assert isinstance(answer(folder), DcSurgeryError) or where == str(folder), where
    assert read_plan(folder).base.folder == "a/b"
