"""The data of a recipe: the user's own columns, and several files as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.evaluation import runner
from dcsurgery.recipes.catalog import change_fields, find_recipe, read_yaml
from dcsurgery.recipes.resolve import missing, pin_data
from dcsurgery.recipes.schema import Recipe, parse_recipe
from dcsurgery.recipes.smoke import shrink
from dcsurgery.recipes.steps import Place, build_steps
from dcsurgery.training import finetune

COLUMNS = {"question": "ask", "image": "{image_id}.png"}
PAIR = "questions.json,annotations.json"


def recipe() -> Recipe:
    changes = (f"finetune.data={PAIR}", f"eval.data={PAIR}")
    values: Any = change_fields(read_yaml(find_recipe("tiny")), changes)
    for section in (*values["finetune"], *values["eval"]):
        section["columns"] = COLUMNS
    return parse_recipe(values, "mine")


def test_columns_reach_training_and_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    class Stop(Exception):
        pass

    def caught(*arguments: Any, **options: Any) -> None:
        seen.append(options)
        raise Stop

    monkeypatch.setattr(finetune, "finetune_connector", caught)
    monkeypatch.setattr(runner, "evaluate_checkpoints", caught)
    place = Place(tmp_path, "base", None, {}, tmp_path, True, lambda line: None)
    steps = {step.name: step for step in build_steps(recipe())}
    for name in ("finetune-1", "eval-colours"):
        with pytest.raises(Stop):
            steps[name].run(place)
        assert steps[name].inputs["columns"] == COLUMNS
    assert [options["columns"] for options in seen] == [COLUMNS, COLUMNS]


def test_a_smoke_run_has_rows_of_its_own() -> None:
    small = shrink(recipe())
    assert [stage.columns for stage in (*small.finetune, *small.eval)] == [{}, {}]


def test_each_of_several_files_is_asked_for_and_counts(tmp_path: Path) -> None:
    steps = build_steps(recipe())
    (tmp_path / "questions.json").write_text(json.dumps({"questions": []}))
    (tmp_path / "images").mkdir()
    assert missing(recipe(), steps, tmp_path) == [f"annotations.json is not in {tmp_path}"]
    (tmp_path / "annotations.json").write_text("{}")
    assert missing(recipe(), steps, tmp_path) == []
    before = pin_data(steps, tmp_path)
    (tmp_path / "annotations.json").write_text("{} ")
    assert before.keys() == {PAIR} and pin_data(steps, tmp_path) != before
