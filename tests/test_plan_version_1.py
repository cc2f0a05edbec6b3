"""Plans of version 1, as dcsurgery 0.1.0 wrote them, are read: one of each kind is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dcsurgery
from dcsurgery.errors import MalformedCheckpointError
from dcsurgery.surgery.plan_file import PLAN_FILE, SurgeryPlan, read_plan
from dcsurgery.tiny.published import write_tiny_published

PLANS = Path(__file__).parent / "surgery_plans"
# The options that each plan was made with.
OPTIONS: dict[str, dict[str, Any]] = {
    "dci-stock": {},
    "dci-delta": {"form": "delta"},
    "sci": {"connector": "sci", "layers": "0,3"},
    "sci-norm": {"connector": "sci", "norm": True},
    "sti": {"connector": "sti"},
    "mix": {"connector": "mix"},
    "pool": {"pool": 2},
    "paper": {"init": "paper", "seed": 3, "groups": 1, "form": "delta"},
    "published": {},
}


def stored(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PLANS / f"{name}-v1.json").read_bytes())
    assert found["schema_version"] == 1
    return found


def place(folder: Path, values: Any) -> Path:
    path = folder / PLAN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return folder


def as_version_1(plan: dict[str, Any]) -> dict[str, Any]:
    """Today's plan as version 1 wrote it: the layout among the plan's own keys."""
    layout = plan.pop("layout")
    layout["blocks"] = [block["layers"] for block in layout["blocks"]]
    return {**plan, "schema_version": 1, "groups": len(layout["blocks"]), **layout}


def without_values(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan without its hashes of drawn values, which depend on the processor, its place, its
    notes, and which prompts an original gets: 0.1.0 did not say.
    """
    plan["relies_on"] = list(plan["relies_on"])
    for record in [*plan["delta"], *plan["changed"]]:
        del record["sha256"], record["base_sha256"]
    for key in ("id", "folder", "towers", "template"):
        plan["base"].pop(key, None)
    del plan["notes"]
    return plan


def is_within(old: Any, new: Any) -> bool:
    """Whether every key of `old` has its value in `new`, which may have further ones."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and is_within(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(is_within, old, new))
    return bool(old == new)


def test_every_plan_has_its_options() -> None:
    names = {path.stem.removesuffix("-v1") for path in PLANS.glob("*.json")}
    assert names == {*OPTIONS, "trained"}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_plan_means_what_the_same_options_plan_today(
    name: str, tiny_clip: Path, tmp_path: Path
) -> None:
    model = tiny_clip
    if name == "published":
        model = write_tiny_published(tmp_path / "orig" / "llava", connector="sti")
    dcsurgery.convert(model, tmp_path / "out", **OPTIONS[name])
    found = read_plan(place(tmp_path / "old", stored(name)))
    assert found.schema_version == 2 and found.layout == read_plan(tmp_path / "out").layout
    new = json.loads((tmp_path / "out" / PLAN_FILE).read_bytes())
    old = json.loads(found.model_dump_json())
    assert without_values(old) == without_values(json.loads(json.dumps(new)))
    assert is_within(without_values(stored(name)), without_values(as_version_1(new)))


@pytest.mark.parametrize("options", [{}, {"form": "delta", "connector": "sci"}, {"pool": 2}])
def test_a_folder_of_version_1_verifies_loads_and_is_written_on_as_version_2(
    options: dict[str, Any], tiny_clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    before = dcsurgery.convert(tiny_clip, folder, **options).plan
    place(folder, as_version_1(json.loads((folder / PLAN_FILE).read_bytes())))
    assert read_plan(folder) == before
    assert dcsurgery.verify(folder).passed
    dcsurgery.load(folder)
    if before.form == "stock":
        exported = dcsurgery.export(folder, tmp_path / "again").plan
        assert json.loads((tmp_path / "again" / PLAN_FILE).read_bytes())["schema_version"] == 2
        assert exported.layout == before.layout


def test_a_trained_plan_keeps_its_record_and_adapter() -> None:
    values = stored("trained")
    plan = SurgeryPlan.model_validate(values)
    (record,) = plan.training
    assert record.model_dump(mode="json").items() >= values["training"][0].items()
    assert plan.adapter is not None and plan.adapter.targets == values["adapter"]["targets"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("blocks", 3, "layout.blocks"),
        ("blocks", [[0], []], "layout.blocks.1"),
        ("blocks", [[0], [5]], "state 5"),
        ("axis", "depth", "layout.axis"),
        ("stride", 0, "layout"),
        ("layout", {}, "schema_version"),
        ("extra", 1, "extra"),
    ],
)
def test_a_broken_plan_of_version_1_names_the_place(
    key: str, value: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(MalformedCheckpointError) as caught:
        read_plan(place(tmp_path, stored("mix") | {key: value}))
    assert said in caught.value.message
