"""Recipe files: keys are checked, mistakes are named, --set reaches every place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.features import parse_layers
from dcsurgery.recipes.catalog import (
    change_fields,
    find_recipe,
    load_recipe,
    read_text,
    read_yaml,
    shipped,
)
from dcsurgery.recipes.schema import parse_recipe
from dcsurgery.recipes.steps import build_steps
from dcsurgery.recipes.sweep import expand

PROMISED = [
    *(
        f"llava-1.5-{size}-{kind}"
        for size in ("7b", "13b")
        for kind in ("dci", "sci", "sti", "efficient")
    ),
    "llava-siglip-7b-dci",
    "llava-next-7b-dci",
    "mini-gemini-7b-dci",
    "mini-gemini-13b-dci",
    "llava-next-34b-dci-lora",
    "llava-next-72b-dci-lora",
    "published-v1.5-7b",
    "published-with-mgm-7b",
    "table-1-ablation",
    "tiny",
]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_is_valid_and_opens_with_its_story(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    opening = find_recipe(name).read_text().splitlines()[:5]
    for word, line in zip(
        ("# ", "# From:", "# Cost:", "# Command:", "# Source:"), opening, strict=True
    ):
        assert line.startswith(word)
    assert f"dcsurgery recipe run {name}" in opening[3]
    for point in expand(recipe):
        assert build_steps(point.recipe)[0].name == "convert"


def test_the_promised_recipes_are_shipped() -> None:
    assert set(PROMISED) <= set(shipped())


def tiny() -> dict[str, object]:
    values = read_yaml(find_recipe("tiny"))
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ("connecter={}", "connecter: there is no such key", "did you mean connector?"),
        ("connector.gruops=3", "connector.gruops: there is no such key", "did you mean groups?"),
        ("finetune.1r=1e-4", "finetune.0.1r: there is no such key", "did you mean lr?"),
        ("eval.metric=fuzzy", "eval.0.metric: input should be", "recipe show"),
        ("finetune.²=1", "finetune.0.²: there is no such key", "keys:"),
        ("cost.hours=-1", "cost.hours: input should be greater than 0", "recipe show"),
        (
            "finetune.max_bad=2%%",
            "finetune.0: max_bad '2%%': a percentage from 0 to 100",
            "give a number",
        ),
        ("eval.max_bad=101", "eval.0.max_bad: a percentage from 0 to 100", "recipe show"),
    ],
)
def test_a_wrong_key_or_value_is_named(change: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_recipe(change_fields(tiny(), (change,)), "mine")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", [name for name in PROMISED if name.startswith("llava-1.5-")])
def test_llava_1_5_is_trained_as_the_reference_trains_it(name: str) -> None:
    """scripts/v1_5 of HJYao00/DenseConnector at 0f8936c: --version and --image_aspect_ratio."""
    first, second = (stage.settings().resolved() for stage in load_recipe(name).finetune)
    assert (first.prompt, first.aspect) == ("plain", "processor")
    assert (second.prompt, second.aspect) == ("v1", "pad")


def test_set_reaches_one_stage_or_all_and_reads_numbers() -> None:
    values = {"finetune": [{"lr": 1}, {"lr": 2}], "base": {"revision": None}}
    changed = change_fields(values, ("finetune.lr=1e-4", "finetune.1.lr=3", "base.revision=main"))
    assert changed == {"finetune": [{"lr": 1e-4}, {"lr": 3}], "base": {"revision": "main"}}
    assert values["finetune"] == [{"lr": 1}, {"lr": 2}], "the file's own values stay"


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [("max_bad=5%", True), ("save_steps=7", True), ("max_length=99", False), ("seed=9", False)],
)
def test_a_training_under_way_goes_on_where_a_change_teaches_nothing(
    change: str, goes_on: bool
) -> None:
    steps = [
        next(step for step in build_steps(parse_recipe(values, "mine")) if "finetune" in step.name)
        for values in (tiny(), change_fields(tiny(), (f"finetune.{change}",)))
    ]
    assert (steps[0].inputs == steps[1].inputs) == goes_on


@pytest.mark.parametrize("text", ["15", "7,15", "07", "0"])
def test_layers_may_be_written_without_quotes(text: str) -> None:
    changed = change_fields(tiny(), (f"connector.layers={text}", "base.revision=2024"))
    recipe = parse_recipe(changed, "mine")
    assert recipe.connector.layers == parse_layers(text)
    assert recipe.base.revision == "2024"


@pytest.mark.parametrize("change", ["finetune.lr", "finetune.7.lr=1", "name.x=1", "=3"])
def test_a_set_that_leads_nowhere_is_refused(change: str) -> None:
    with pytest.raises(RequestError):
        change_fields(tiny(), (change,))


def test_unknown_names_and_broken_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"llava-1\.5-7b-dcy") as caught:
        find_recipe("llava-1.5-7b-dcy")
    assert "llava-1.5-7b-dci" in caught.value.hint
    with pytest.raises(DcSurgeryError, match=r"no file .*absent\.yaml"):
        find_recipe(str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\n  base: [\n")
    with pytest.raises(RequestError, match="line 2"):
        load_recipe(str(broken))
    broken.write_text("name: 2024-13-45\n")
    with pytest.raises(RequestError, match="month must be in"):
        load_recipe(str(broken))
    assert change_fields({"x": 1}, ("x=2024-13-45",)) == {"x": "2024-13-45"}
    broken.write_bytes(b"\xff\xfe\x00")
    for read in (load_recipe, read_text):
        with pytest.raises(RequestError, match="cannot be read"):
            read(str(broken) if read is load_recipe else broken)
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(RequestError, match="mapping"):
        load_recipe(str(tmp_path / "list.yaml"))


def test_expected_numbers_name_an_eval_that_exists() -> None:
    wrong = {"benchmark": "GQA", "value": 1, "tolerance": 1, "source": "x", "eval": "gqa"}
    with pytest.raises(RequestError, match="'gqa', which is no eval"):
        parse_recipe({**tiny(), "expected": [wrong]}, "mine")


def test_a_sweep_is_every_combination_with_folder_names() -> None:
    sweep = {
        "connector": [{"kind": "sci", "layers": "7,15"}, {"kind": "dci"}],
        "connector.seed": [0, 1],
    }
    points = expand(parse_recipe({**tiny(), "sweep": sweep}, "mine"))
    assert [point.name for point in points] == [
        "connector-sci-7,15,seed-0",
        "connector-sci-7,15,seed-1",
        "connector-dci,seed-0",
        "connector-dci,seed-1",
    ]
    assert points[1].recipe.connector.layers == ((7, 15),)
    assert points[3].recipe.connector.seed == 1
    assert not points[0].recipe.sweep


def test_yaml_files_hold_no_key_twice() -> None:
    for path in shipped().values():
        loaded = yaml.safe_load(path.read_text())
        top = [line.split(":")[0] for line in path.read_text().splitlines() if line[:1].isalpha()]
        assert len(top) == len(set(top)) == len(loaded), path.name
