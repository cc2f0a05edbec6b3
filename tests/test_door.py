"""The Python door: plans that print themselves, one dry run, one progress, old names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dcsurgery as dc
from dcsurgery.cli.main import app
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.surgery.plan import make_plan
from tests.training.data import write_data

Run = Callable[..., tuple[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a dry run of a command: what it prints, and its --json."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object) -> tuple[str, Any]:
        words = [*map(str, arguments), "--dry-run"]
        texts = [CliRunner().invoke(app, [*words, *more]) for more in ([], ["--json"])]
        assert [found.exit_code for found in texts] == [0, 0], texts[0].stderr
        return texts[0].stdout, json.loads(texts[1].stdout)

    return call


def steady(values: dict[str, Any]) -> dict[str, Any]:
    """Values without what is measured and differs from call to call."""
    return {key: value for key, value in values.items() if key not in ("free_bytes", "estimate")}


@pytest.mark.parametrize(
    "options", [{}, {"connector": "sci", "layers": "0,2", "form": "delta"}, {"pool": 2}]
)
def test_a_plan_prints_what_a_dry_run_shows(
    options: dict[str, Any], run: Run, tiny_clip: Path, tmp_path: Path
) -> None:
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    text, values = run("convert", tiny_clip, *words)
    plan = dc.plan(tiny_clip, **options)
    assert f"{plan}\n" == text and json.loads(plan.to_json()) == values == plan.to_dict()
    assert isinstance(plan, dc.ConversionPlan) and plan.output is None
    with_place = dc.plan(tiny_clip, tmp_path / "out", **options)
    found = dc.convert(tiny_clip, tmp_path / "out", dry_run=True, **options)
    assert steady(found.to_dict()) == steady(with_place.to_dict())
    assert str(tmp_path / "out") in str(found) and not list(tmp_path.iterdir())
    done = dc.convert(tiny_clip, tmp_path / "out", **options)
    assert done.plan.layout == plan.plan.layout and done.bytes_written <= plan.bytes_to_write
    assert str(done).startswith(f"{tmp_path / 'out'}: ") and done.to_dict()["dry_run"] is False


def test_an_export_and_a_training_are_planned_the_same_way(
    run: Run, tiny_clip: Path, tmp_path: Path
) -> None:
    delta, data = tmp_path / "delta", write_data(tmp_path / "rows")
    dc.convert(tiny_clip, delta, form="delta")
    before = sorted(tmp_path.rglob("*"))
    text, values = run("export", delta)
    plan = dc.export(delta, dry_run=True)
    assert f"{plan}\n" == text and plan.to_dict() == values and plan.plan.form == "stock"
    text, values = run("finetune", delta, "--data", data)
    training = dc.finetune(delta, data, dry_run=True)
    assert steady(json.loads(training.to_json())) == steady(values)
    unmeasured = [line for line in str(training).split("\n") if " s" not in line]
    assert set(unmeasured) <= set(text.split("\n")) and len(unmeasured) > 10
    assert sorted(tmp_path.rglob("*")) == before
    exported = dc.export(delta, tmp_path / "stock")
    assert exported.bytes_written <= plan.bytes_to_write
    with pytest.raises(OutputExistsError):
        dc.export(delta, tmp_path / "stock", dry_run=True)
    with pytest.raises(OutputExistsError):
        dc.finetune(delta, data, tmp_path / "stock", dry_run=True)


@pytest.mark.parametrize("function", [dc.convert, dc.export])
def test_without_an_output_nothing_but_a_dry_run_is_possible(
    function: Callable[..., Any], tiny_clip: Path
) -> None:
    with pytest.raises(RequestError, match="no output folder"):
        function(tiny_clip)


def test_old_names_lead_to_what_there_is(tiny_clip: Path, tmp_path: Path) -> None:
    for old, new in dc._RENAMED.items():
        with pytest.warns(DeprecationWarning, match=f"dcsurgery.{old} is now dcsurgery.{new}"):
            assert getattr(dc, old) is getattr(dc, new)
    with pytest.warns(DeprecationWarning, match="is now dcsurgery.plan"):
        assert dc.make_plan is make_plan
    with pytest.warns(DeprecationWarning, match=r"is now dcsurgery.finetune\(\.\.\., dry_run=True"):
        preview = dc.preview_finetune
    with pytest.raises(RequestError, match="no dense connector"):
        preview(tiny_clip, "rows.json")
    for new, *_ in dc._REPLACED.values():
        assert new.partition("(")[0] in dc.__all__
