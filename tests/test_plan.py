"""The plan: costs by hand, every contradiction refused, and broken records explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.connectors.request import Connector
from dcsurgery.errors import (
    AnatomyError,
    CheckpointNotFoundError,
    DcSurgeryError,
    MalformedCheckpointError,
    PlanError,
    UnknownArchitectureError,
)
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import PLAN_FILE, SurgeryPlan, read_plan
from tests.headers_only import FIRST, Shapes, checkpoint, llava_like

SIGLIP = {"width": 1152, "depth": 27, "image_size": 384, "kind": "siglip_vision_model"}
# New parameters of the delta form: 2 * tower width * language width.
PUBLISHED_GROWTH = {
    "CLIP-L, 7B": ({}, 8_388_608, 576),
    "CLIP-L, 13B": ({"hidden": 5120}, 10_485_760, 576),
    "CLIP-L, Gemma-2B": ({"hidden": 2048}, 4_194_304, 576),
    "SigLIP, 7B": (SIGLIP, 9_437_184, 729),
    "SigLIP, 13B": (SIGLIP | {"hidden": 5120}, 11_796_480, 729),
}


@pytest.mark.parametrize("kind", ["dci", "sci"])
@pytest.mark.parametrize("name", PUBLISHED_GROWTH)
def test_a_delta_costs_two_widths_of_columns(name: str, kind: str) -> None:
    options, growth, tokens = PUBLISHED_GROWTH[name]
    plan = make_plan(checkpoint(*llava_like(**options)), Connector(kind, form="delta"))
    assert plan.new_parameters == growth
    assert plan.image_tokens == tokens
    assert plan.extra_flops_per_image == 2 * tokens * growth
    assert [record.name for record in plan.delta] == ["dense_connector.weight"]
    assert plan.delta[0].dtype == "F16"
    assert plan.loader == "dcsurgery.load"
    assert (plan.stock_layers, plan.config_changes, plan.changed) == (None, {}, [])


def test_stock_dci_of_llava_7b_costs_23_more_layers() -> None:
    plan = make_plan(checkpoint(*llava_like()), Connector())
    assert plan.form == "stock"
    assert plan.new_parameters == 23 * 1024 * 4096 == 96_468_992
    assert plan.extra_flops_per_image == 2 * 576 * 96_468_992 == 111_132_278_784
    assert plan.stock_layers == list(range(24))
    assert plan.config_changes == {"vision_feature_layer": {"from": -2, "to": list(range(24))}}
    (record,) = plan.changed
    assert (record.name, record.base_shape, record.shape) == (FIRST, [4096, 1024], [4096, 24576])
    assert "4.49" in plan.loader
    assert plan.notes == []


def test_stock_sci_of_llava_7b_costs_two_more_layers() -> None:
    plan = make_plan(checkpoint(*llava_like()), Connector("sci"))
    assert plan.stock_layers == [7, 15, 23]
    assert plan.new_parameters == 2 * 1024 * 4096
    assert plan.changed[0].shape == [4096, 3072]


def test_a_layer_that_is_read_already_costs_no_column() -> None:
    plan = make_plan(checkpoint(*llava_like()), Connector("sci", layers=((7, 23),)))
    assert plan.stock_layers == [7, 23]
    assert plan.new_parameters == 1024 * 4096


def test_the_plan_records_what_it_relies_on() -> None:
    source = checkpoint(*llava_like())
    plan = make_plan(source, Connector())
    assert (plan.base.id, plan.base.commit, plan.base.folder) == ("org/model", "c" * 40, None)
    assert plan.base.files["model.safetensors"].size == source.weights[0].size
    assert set(plan.relies_on) == {n for n in source.tensors if n.startswith("multi_modal_proj")}
    assert plan.relies_on[FIRST] is None


def test_planning_is_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(*llava_like())
    before = json.dumps(source.config)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    first, second = (make_plan(source, Connector()) for _ in range(2))
    assert first == second
    assert SurgeryPlan.model_validate_json(first.model_dump_json()) == first
    assert json.dumps(source.config) == before


def test_planning_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "from dcsurgery.connectors.request import Connector\n"
        "from dcsurgery.surgery.plan import make_plan\n"
        "from tests.headers_only import checkpoint, llava_like\n"
        "assert make_plan(checkpoint(*llava_like()), Connector()).new_parameters\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_paper_init_redraws_the_whole_projector_and_says_so() -> None:
    plan = make_plan(checkpoint(*llava_like()), Connector(init="paper", seed=3))
    assert plan.seed == 3
    assert {record.name for record in plan.changed} == set(plan.relies_on)
    assert {record.name for record in plan.delta} == {"dense_connector.weight", *plan.relies_on}
    assert any("at random" in note for note in plan.notes)


def test_notes_say_where_the_groups_stop() -> None:
    plan = make_plan(checkpoint(*llava_like(**SIGLIP)), Connector())
    assert any("stop at state 25" in note for note in plan.notes)


def test_notes_say_when_groups_differ_in_size() -> None:
    plan = make_plan(checkpoint(*llava_like()), Connector(groups=7))
    assert any("[3, 4]" in note for note in plan.notes)
    own = Connector(groups=7, layers=(tuple(range(24)),))
    assert make_plan(checkpoint(*llava_like()), own).notes == []


def test_a_dropped_patch_token_is_counted_and_said() -> None:
    config, shapes = llava_like(**SIGLIP)
    config["vision_feature_select_strategy"] = "default"
    plan = make_plan(checkpoint(config, shapes), Connector())
    assert plan.image_tokens == 728
    assert any("drops a patch token" in note for note in plan.notes)


def test_full_strategy_keeps_the_class_token() -> None:
    config, shapes = llava_like()
    config["vision_feature_select_strategy"] = "full"
    assert make_plan(checkpoint(config, shapes), Connector()).image_tokens == 577


Edit = Callable[[dict[str, Any], Shapes], object]
BLOCK = "vision_tower.vision_model.encoder.layers."


def vision(**values: Any) -> Edit:
    return lambda config, shapes: config["vision_config"].update(values)


def top(**values: Any) -> Edit:
    return lambda config, shapes: config.update(values)


def drop(name: str) -> Edit:
    return lambda config, shapes: [shapes.pop(key) for key in list(shapes) if key.startswith(name)]


def add(name: str, dtype: str, *shape: int) -> Edit:
    return lambda config, shapes: shapes.update({name: (dtype, shape)})


CONTRADICTIONS: dict[str, tuple[Edit, str]] = {
    "width": (vision(hidden_size=768), "hidden_size is 768"),
    "depth": (vision(num_hidden_layers=12), "num_hidden_layers is 12"),
    "depth is text": (vision(num_hidden_layers="24"), "num_hidden_layers"),
    "one block missing": (drop(f"{BLOCK}7."), "gaps"),
    "last block missing": (drop(f"{BLOCK}23."), "num_hidden_layers is 24"),
    "no tower": (drop("vision_tower"), "no tensor belongs to the vision tower"),
    "no projector": (drop("multi_modal_projector"), "no tensor is named"),
    "two projectors": (add(f"model.{FIRST}", "F16", 4096, 1024), "2 tensors are"),
    "projector reads another width": (add(FIRST, "F16", 4096, 768), "hidden_size"),
    "projector writes another width": (add(FIRST, "F16", 5120, 1024), "text_config.hidden_size"),
    "projector is a vector": (add(FIRST, "F16", 4096), "not a matrix"),
    "projector is empty": (add(FIRST, "F16", 4096, 0), "empty"),
    "projector is boolean": (add(FIRST, "BOOL", 4096, 1024), "BOOL"),
    "layer too deep": (top(vision_feature_layer=25), "25"),
    "layer too shallow": (top(vision_feature_layer=-26), "-26"),
    "layer is text": (top(vision_feature_layer="-2"), "'-2'"),
    "layer is true": (top(vision_feature_layer=True), "True"),
    "layer is null": (top(vision_feature_layer=None), "None"),
    "layer is a fraction": (top(vision_feature_layer=1.5), "1.5"),
    "no layers": (top(vision_feature_layer=[]), "[]"),
    "three layers": (top(vision_feature_layer=[1, 2, 3]), "does not divide"),
    "two layers": (top(vision_feature_layer=[1, 2]), "hidden_size"),
    "strategy": (top(vision_feature_select_strategy="cls"), "'cls'"),
    "strategy is a list": (top(vision_feature_select_strategy=["full"]), "full"),
    "tower kind": (vision(model_type="swin"), "swin"),
    "tower kind is a list": (vision(model_type=["clip"]), "clip"),
    "tower kind of other names": (vision(model_type="pixtral"), "no tensor belongs"),
    "no pixels": (vision(image_size=0), "image_size"),
    "pixels are text": (vision(image_size="336"), "image_size"),
    "patches are null": (vision(patch_size=None), "patch_size"),
    "patches are true": (vision(patch_size=True), "patch_size"),
    "patch larger than the image": (vision(patch_size=500), "patch_size"),
    "vision config is text": (top(vision_config="clip"), "vision_config"),
    "text config is a list": (top(text_config=[1]), "text_config"),
}


def refused(config: dict[str, Any], shapes: Shapes, kind: type[DcSurgeryError]) -> DcSurgeryError:
    with pytest.raises(DcSurgeryError) as caught:
        make_plan(checkpoint(config, shapes), Connector())
    assert type(caught.value) is kind, caught.value
    assert len(caught.value.hint) > 10
    return caught.value


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_config_and_tensors_that_disagree_are_refused(name: str) -> None:
    edit, said = CONTRADICTIONS[name]
    config, shapes = llava_like()
    edit(config, shapes)
    assert said in refused(config, shapes, AnatomyError).message


def test_a_config_that_states_less_is_read_from_the_tensors() -> None:
    config, shapes = llava_like()
    expected = make_plan(checkpoint(config, shapes), Connector())
    del config["vision_config"], config["vision_feature_layer"], config["text_config"]
    found = make_plan(checkpoint(config, shapes), Connector())
    assert found.anatomy == expected.anatomy


QUANTISED: dict[str, Edit] = {
    "int8": add(FIRST, "I8", 4096, 1024),
    "fp8": add(FIRST, "F8_E4M3", 4096, 1024),
    "bitsandbytes 4-bit": add(FIRST, "U8", 2097152, 1),
    "packed with a scale beside": add(f"{FIRST}_scale", "F32", 4096),
    "bitsandbytes state": add(f"{FIRST}.absmax", "F32", 65536),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_projectors_are_refused(name: str) -> None:
    config, shapes = llava_like()
    QUANTISED[name](config, shapes)
    error = refused(config, shapes, AnatomyError)
    assert "quantised" in error.message and FIRST in error.message
    assert "unquantised" in error.hint


@pytest.mark.parametrize("name", ["BertModel", None, 7, ["LlavaForConditionalGeneration"]])
def test_unknown_classes_are_named_with_where_to_look(name: Any) -> None:
    config, shapes = llava_like()
    config["architectures"] = [name]
    error = refused(config, shapes, UnknownArchitectureError)
    assert repr(name) in error.message and "'llava'" in error.message
    assert "dcsurgery architectures" in error.hint


@pytest.mark.parametrize("value", [None, [], {}])
def test_a_config_without_a_class_is_known_by_its_type(value: Any) -> None:
    config, shapes = llava_like()
    config["architectures"] = value
    assert make_plan(checkpoint(config, shapes), Connector()).architecture == "llava"


@pytest.mark.parametrize("value", ["LlavaForConditionalGeneration", {"0": "x"}, 3])
def test_a_class_that_is_no_list_is_refused(value: Any) -> None:
    config, shapes = llava_like()
    config["architectures"] = value
    refused(config, shapes, UnknownArchitectureError)


def test_original_llava_is_refused_with_the_way_out() -> None:
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    }
    shapes: Shapes = {"model.mm_projector.0.weight": ("F16", (8, 4))}
    error = refused(config, shapes, UnknownArchitectureError)
    assert "original format" in error.message
    assert "openai/clip-vit-large-patch14-336" in error.message
    assert "llava-hf/llava-1.5-7b-hf" in error.hint


def test_layers_the_tower_lacks_are_a_plan_error() -> None:
    for spec in (
        Connector("sci", layers=((7, 99),)),
        Connector("dci", layers=((0, 1), (25,))),
        Connector("dci", groups=25),
    ):
        with pytest.raises(PlanError):
            make_plan(checkpoint(*llava_like()), spec)


@pytest.fixture(scope="module")
def recorded(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real plan.json as plain values."""
    out = tmp_path_factory.mktemp("plan") / "out"
    convert_checkpoint(tiny_clip, out)
    values: dict[str, Any] = json.loads((out / PLAN_FILE).read_bytes())
    return values


def write_plan(folder: Path, text: str | bytes) -> Path:
    (folder / PLAN_FILE).parent.mkdir(parents=True, exist_ok=True)
    raw = text.encode() if isinstance(text, str) else text
    (folder / PLAN_FILE).write_bytes(raw)
    return folder


def test_a_plan_reads_back_as_written(recorded: dict[str, Any], tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, json.dumps(recorded)))
    assert plan.kind == "dci" and json.loads(plan.model_dump_json()) == recorded
    assert all(record.sha256 for record in [*plan.delta, *plan.changed])
    assert all(plan.relies_on.values())


@pytest.mark.parametrize("folder", ["", "nowhere", "file"])
def test_a_folder_without_a_plan_says_how_to_make_one(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointNotFoundError) as caught:
        read_plan(tmp_path / folder)
    assert "dcsurgery convert" in caught.value.hint


BROKEN_TEXT = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "not UTF-8": b'{"kind": "\xff"}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN_TEXT)
def test_plans_that_are_no_json_object_are_malformed(name: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedCheckpointError) as caught:
        read_plan(write_plan(tmp_path, BROKEN_TEXT[name]))
    assert "convert" in caught.value.hint and "plan.json" in caught.value.message


def reads(*groups: list[int]) -> Callable[[dict[str, Any]], object]:
    """Make a plan's blocks read these groups of states."""
    blocks = [{"layers": group} for group in groups]
    return lambda plan: plan["layout"].update(blocks=blocks)


BROKEN_VALUES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda plan: plan.update(extra=1), "extra"),
    "unknown key inside": (lambda plan: plan["base"].update(extra=1), "base.extra"),
    "newer schema": (lambda plan: plan.update(schema_version=3), "schema_version"),
    "missing key": (lambda plan: plan.pop("form"), "form"),
    "unknown form": (lambda plan: plan.update(form="both"), "form"),
    "no blocks": (reads(), "layout"),
    "an empty block": (reads([0], []), "blocks.1"),
    "a state the tower lacks": (reads([0], [5]), "state 5"),
    "a negative state": (reads([-1], [2]), "state -1"),
    "an unknown key in the layout": (lambda plan: plan["layout"].update(extra=1), "layout.extra"),
    "an unknown key in a block": (
        lambda plan: plan["layout"]["blocks"][0].update(extra=1),
        "layout.blocks.0.extra",
    ),
    "a stride of none": (lambda plan: plan["layout"].update(stride=0), "layout"),
    "a pool of none": (lambda plan: plan["layout"].update(pool=0), "layout"),
    "no layout": (lambda plan: plan.pop("layout"), "layout"),
    "no anatomy": (lambda plan: plan.update(anatomy={}), "anatomy"),
    "an anatomy of text": (lambda plan: plan["anatomy"]["tower"].update(depth="deep"), "depth"),
    "a tower missing": (lambda plan: plan["anatomy"].pop("tower"), "tower"),
}


@pytest.mark.parametrize("name", BROKEN_VALUES)
def test_broken_plans_name_the_place(name: str, recorded: dict[str, Any], tmp_path: Path) -> None:
    edit, said = BROKEN_VALUES[name]
    values = json.loads(json.dumps(recorded))
    edit(values)
    with pytest.raises(MalformedCheckpointError) as caught:
        read_plan(write_plan(tmp_path, json.dumps(values)))
    assert said in caught.value.message
    assert "update dcsurgery" in caught.value.hint


def test_a_plan_that_is_no_file_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "a" / PLAN_FILE).mkdir(parents=True)
    (tmp_path / "b" / PLAN_FILE).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / "b" / PLAN_FILE)
    for name in "ab":
        with pytest.raises(MalformedCheckpointError):
            read_plan(tmp_path / name)
