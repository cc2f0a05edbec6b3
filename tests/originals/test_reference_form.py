"""`--form reference` against what the reference code saves, and read back."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dcsurgery
from dcsurgery.errors import OutputExistsError, PlanError
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.llava import Tower
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from tests.golden.numbers import GOLDEN, check_path
from tests.originals.originals import golden_original, golden_tower
from tests.surgery import digests

SIZES = OriginalSizes(words=64)
# Entries that say where a model comes from, not what it is.
PROVENANCE = {"mm_vision_tower", "transformers_version", "rope_theta", "max_position_embeddings"}


def layout(name: str, kind: str) -> dict[str, Any]:
    """Keys, shapes and config.json as the reference saves them."""
    layouts = json.loads((GOLDEN / f"{name}_checkpoint_layout.json").read_bytes())["layouts"]
    first, found = next(iter(layouts.values())), layouts[kind]
    return {
        "config": first["config_json"] | found.get("config_json_differs", {}),
        "shapes": first["state_dict"] | found.get("state_dict_differs", {}),
    }


def saved(folder: Path) -> dict[str, Any]:
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        shapes |= {name: list(value.shape) for name, value in load_file(path).items()}
    return {"config": json.loads((folder / "config.json").read_bytes()), "shapes": shapes}


def same_layout(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["shapes"] == wanted["shapes"]
    assert list(found["config"]) == list(wanted["config"])
    for key in wanted["config"].keys() - PROVENANCE:
        assert found["config"][key] == wanted["config"][key], key


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with exactly the layout that LLaVA itself saves, its tower elsewhere."""
    folder = tmp_path_factory.mktemp("reference")
    named = write_tower(folder / "tower", SIZES)
    config = layout("llava_llama", "flat")["config"]
    kept = {key: config[key] for key in config.keys() - PROVENANCE - {"torch_dtype"}}
    return write_original_llava(folder / "base", SIZES, str(named), config=kept, inside=False)


@pytest.mark.parametrize("kind", ["dci", "sci", "sti"])
def test_an_original_is_written_in_exactly_the_references_layout(
    original: Path, tmp_path: Path, kind: str
) -> None:
    dcsurgery.convert(original, tmp_path / "out", connector=kind, form="reference")
    same_layout(saved(tmp_path / "out"), layout("dc_llava_llama", kind))


def test_so_is_a_hugging_face_llava(tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base", "clip", depth=24, image_size=28, patch_size=7)
    named = {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    done = dcsurgery.convert(base, tmp_path / "out", form="reference", towers=named)
    found, wanted = saved(tmp_path / "out"), layout("dc_llava_llama", "dci")
    assert found["shapes"].keys() == wanted["shapes"].keys()
    assert list(found["config"]) == list(wanted["config"])
    assert found["config"]["mm_vision_tower"] == named["mm_vision_tower"]
    assert found["config"]["vocab_size"] == found["shapes"]["lm_head.weight"][0]
    assert found["config"]["rope_theta"] == 20000.0
    assert found["shapes"]["model.mm_projector.0.weight"] == [24, 48]
    assert done.plan.loader == "HJYao00/DenseConnector's own code"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_a_published_checkpoint_comes_back_byte_for_byte(tower: Tower, tmp_path: Path) -> None:
    named = golden_tower(tmp_path / tower, tower)
    base = golden_original(tmp_path / "base", tower, "dci", named, wide=True)
    dcsurgery.convert(base, tmp_path / "out", form="reference")
    assert digests(tmp_path / "out") == digests(base)
    first, second = saved(base)["config"], saved(tmp_path / "out")["config"]
    assert first == second
    check_path(dcsurgery.load(tmp_path / "out"), tower, "dci")


def test_a_zero_connector_is_zero_columns_behind_the_originals(
    original: Path, tmp_path: Path
) -> None:
    dcsurgery.convert(original, tmp_path / "out", form="reference")
    name = "model.mm_projector.0.weight"
    before = load_file(original / "model.safetensors")[name]
    found = load_file(next((tmp_path / "out").glob("model-00001*")))[name]
    assert torch.equal(found[:, :16], before) and not found[:, 16:].any()
    inspected = dcsurgery.inspect(tmp_path / "out")
    assert inspected.original is not None and inspected.original.connector == "dci"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"connector": "mix"}, "no mix connector"),
        ({"groups": 3}, "reads hidden states 0..11 | 12..23"),
        ({"pool": 2}, "with these options"),
        ({"connector": "sci", "layers": "3,9"}, "reads hidden states 7 | 15"),
    ],
)
def test_what_the_reference_cannot_run_is_refused(
    original: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match="reference code cannot run") as caught:
        dcsurgery.convert(original, tmp_path / "out", form="reference", **options)
    assert words in caught.value.message and not (tmp_path / "out").exists()


def test_a_tower_without_a_name_the_reference_would_know_is_asked_for(tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base", "clip", depth=24, image_size=28, patch_size=7)
    with pytest.raises(PlanError, match="loads its vision tower by name") as caught:
        dcsurgery.convert(base, tmp_path / "out", form="reference")
    assert "--tower mm_vision_tower=" in caught.value.hint
    wrong = {"mm_vision_tower": "google/siglip-so400m-patch14-384"}
    with pytest.raises(PlanError, match="tells SigLIP from CLIP by the tower's name"):
        dcsurgery.convert(base, tmp_path / "out", form="reference", towers=wrong)


def test_every_form_is_replaced_by_every_other_but_not_with_notes_in_it(
    original: Path, tmp_path: Path
) -> None:
    forms = ("stock", "delta", "reference")
    for first, second in itertools.product(forms, forms):
        output = tmp_path / f"{first}-{second}"
        dcsurgery.convert(original, output, form=first)
        with pytest.raises(OutputExistsError, match="not empty") as caught:
            dcsurgery.convert(original, output, form=second)
        assert "--overwrite" in caught.value.hint
        dcsurgery.convert(original, output, form=second, overwrite=True)
        (output / "notes.txt").write_text("mine")
        with pytest.raises(OutputExistsError, match=r"did not write: notes\.txt"):
            dcsurgery.convert(original, output, form=first, overwrite=True)
        assert (output / "notes.txt").read_text() == "mine"
