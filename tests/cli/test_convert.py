from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcsurgery import read_plan
from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.surgery.conversion import compact, list_moves
from tests.tiny.mllama import write_tiny_mllama
from tests.tiny.molmo2 import write_tiny_molmo2

from .conftest import Run


def state(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_convert_says_what_was_written_and_what_to_do_next(
    run: Run, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out of the way"
    result = run("convert", model, "-o", out)
    assert result.exit_code == 0 and (out / "config.json").is_file()
    for fact in (
        "dci into",
        "model-00003-of-00003.safetensors rewrite",
        "dense_connector/model.safetensors",
        "new parameters 8,832",
        "transformers >= 4.49.0, LlavaForConditionalGeneration",
    ):
        assert fact in " ".join(result.stdout.split())
    assert result.stderr == f"\nnext:\n  dcsurgery verify '{out}'\n"


@pytest.mark.parametrize("form", ["stock", "delta"])
def test_dry_run_prints_the_whole_plan_and_writes_nothing(
    run: Run, model: Path, tmp_path: Path, form: str
) -> None:
    before = state(model)
    result = run("convert", model, "-o", tmp_path / "out", "--dry-run", "--form", form)
    assert result.exit_code == 0
    facts = ["dense_connector.weight", "F32 [24, 32], in dense_connector/model.safetensors"]
    if form == "stock":
        facts += [
            "multi_modal_projector.linear_1.weight",
            "F32 [24, 16] -> [24, 384]",
            "vision_feature_layer: -2 -> [0..23]",
        ]
    facts += ["to write", "free", str(tmp_path / "out"), "loads with", "+ dci   ├──────────┤"]
    for fact in facts:
        assert fact in result.stdout
    assert result.stderr == "\ndry run: nothing was written\n"
    assert not list(tmp_path.iterdir()) and state(model) == before


def test_dry_run_shows_what_the_processor_is_told(run: Run, model: Path) -> None:
    text = " ".join(run("convert", model, "--dry-run", "--pool", "2").stdout.split())
    assert "processor patch_size: 4 -> 8" in text and "64 image tokens become 16" in text


def test_dry_run_needs_no_output(run: Run, model: Path) -> None:
    result = run("convert", model, "--dry-run")
    assert result.exit_code == 0 and "output           none given" in result.stdout


def test_dry_run_refuses_what_the_conversion_would(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    result = run("convert", model, "-o", tmp_path / "out", "--dry-run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "it holds mine" in result.stderr and "--overwrite" not in result.stderr
    assert run("convert", model, "-o", tmp_path / "out", "--dry-run", "--overwrite").exit_code == 1
    assert (tmp_path / "out" / "mine").is_file()


def test_json_of_plan_and_conversion_agree(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = json.loads(run("convert", model, "-o", out, "--dry-run", "--json").stdout)
    result = run("convert", model, "-o", out, "--json")
    assert result.stderr == ""
    done = json.loads(result.stdout)
    assert set(planned) == {
        "schema_version", "dry_run", "output", "bytes_to_write", "free_bytes", "plan",
    }  # fmt: skip
    assert set(done) == {
        "schema_version", "dry_run", "output", "seconds", "bytes_written", "transfers", "plan",
    }  # fmt: skip
    assert (planned["dry_run"], done["dry_run"]) == (True, False)
    assert planned["output"] == done["output"] == str(out)
    assert done["bytes_written"] <= planned["bytes_to_write"] < planned["free_bytes"]
    assert done["plan"] == json.loads((out / "dense_connector" / "plan.json").read_text())
    same = {"base", "layout", "form", "config_changes", "loader", "new_parameters"}
    assert {key: planned["plan"][key] for key in same} == {key: done["plan"][key] for key in same}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {item["file"] for item in done["transfers"]} == files - {".dcsurgery.json"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--connector", "sci"], {"kind": "sci", "groups": ((7,), (15,))}),
        (["--groups", "3"], {"groups": ((*range(8),), (*range(8, 16),), (*range(16, 24),))}),
        (["--layers", "0-3;20..23"], {"groups": ((0, 1, 2, 3), (20, 21, 22, 23))}),
        (["--layers", "-2,-1", "--connector", "sci"], {"groups": ((23,), (24,))}),
        (["--init", "paper", "--seed", "5"], {"init": "paper", "seed": 5}),
        (["--form", "delta"], {"form": "delta"}),
        (["--connector", "sci", "--norm"], {"normed": True, "form": "delta"}),
        (["--pool", "2"], {"pool": 2, "image_tokens": 16, "form": "delta"}),
    ],
)
def test_every_option_reaches_the_plan(
    run: Run, model: Path, tmp_path: Path, options: list[str], wanted: dict[str, Any]
) -> None:
    result = run("convert", model, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    plan = read_plan(tmp_path / "out")
    found = {key: getattr(plan if hasattr(plan, key) else plan.layout, key) for key in wanted}
    assert found == wanted


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--connector", "dense"], "choose dci, sci, sti or mix"),
        (["--init", "zero"], "preserve or paper"),
        (["--form", "onnx"], "choose stock, delta"),
        (["--seed", "-1"], "0 or more"),
        (["--pool", "3"], "choose 1"),
        (["--norm"], "--connector sci"),
        (["--groups", "25"], "between 1 and 24"),
        (["--layers", "a"], "7,15"),
    ],
)
def test_a_choice_that_does_not_exist_names_those_that_do(
    run: Run, model: Path, tmp_path: Path, options: list[str], hint: str
) -> None:
    result = run("convert", model, "-o", tmp_path / "out", *options)
    assert result.exit_code == 1 and hint in result.stderr
    assert not list(tmp_path.iterdir())


def test_link_and_overwrite_do_what_they_say(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("convert", model, "-o", out).exit_code == 0
    assert run("convert", model, "-o", out).exit_code == 1
    result = run("convert", model, "-o", out, "--overwrite", "--link")
    assert result.exit_code == 0 and "hardlink  0 B" in result.stdout
    shard = "model-00001-of-00003.safetensors"
    assert (out / shard).samefile(model / shard)


def test_paper_init_is_noted(run: Run, model: Path, tmp_path: Path) -> None:
    result = run("convert", model, "-o", tmp_path / "out", "--init", "paper", "--quiet")
    assert "note" in result.stdout and "drawn at random" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("output", [".", "..", "/"])
def test_an_output_around_the_model_or_the_user_is_refused_in_words(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    before = state(model)
    monkeypatch.chdir(model)
    for options in ([], ["--dry-run"]):
        result = run("convert", model, "-o", output, *options)
        assert result.exit_code == 1 and "bug" not in result.stderr
    assert state(model) == before


def test_many_weight_files_are_counted_not_listed() -> None:
    moved = tuple(Transfer(f"model-{i:05}.safetensors", "reflink", 0) for i in range(29))
    done = (*moved, Transfer("model-00029.safetensors", "rewrite", 5), Transfer("a", "copy", 1))
    assert list_moves(done) == ["reflink: 29", "rewrite: 1", "and 1 other file"]


def test_long_lists_of_states_are_shortened() -> None:
    assert compact(list(range(24))) == "[0..23]"
    assert compact([7, 15, 23]) == "[7, 15, 23]"
    assert compact(-2) == "-2" and compact([]) == "[]" and compact([True]) == "[true]"
    assert len(compact({"key": "x" * 100})) == 60


@pytest.mark.parametrize(
    ("write", "wanted"),
    [
        (write_tiny_mllama, "vision_config.intermediate_layers_indices: [0, 2] -> [0..2]"),
        (write_tiny_molmo2, "adapter_config.vit_layers: [-3, -5] -> [0..3]"),
    ],
)
def test_a_dry_run_shows_the_key_inside_a_section_that_changes(
    write: Callable[[Path], Path], wanted: str, run: Run, tmp_path: Path
) -> None:
    base = write(tmp_path / "base")
    result = run("convert", base, "--dry-run", "--form", "stock")
    assert result.exit_code == 0, result.stderr
    assert wanted in " ".join(result.stdout.split()), result.stdout
    assert "..." not in result.stdout.partition("all other bytes")[0]


@pytest.mark.parametrize("layers", ["99", "7,99", "0-3;4,99", "-26"])
@pytest.mark.parametrize("connector", ["dci", "mix"])
def test_a_layer_that_does_not_exist_is_named(
    connector: str, layers: str, run: Run, model: Path
) -> None:
    result = run("convert", model, "--dry-run", "--connector", connector, "--layers", layers)
    number = layers.rpartition(",")[2]
    assert result.exit_code == 1
    assert f"hidden state {number} does not exist" in result.stderr
    assert "states 0 to 24" in " ".join(result.stderr.split())
