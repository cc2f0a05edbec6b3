"""probe_model from end to end: every form of a model, and what is said of rows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import dcsurgery
from dcsurgery.errors import DcSurgeryError, OutputExistsError, PlanError, RequestError
from dcsurgery.probing.page import MARK
from dcsurgery.probing.probe_report import ProbeReport
from dcsurgery.tiny.published import write_tiny_published
from tests.training.data import write_data
from tests.training.pictures import save_picture
from tests.training.trained import stage_one

COUNT = 29


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 rows with pictures, one of text alone."""
    return write_data(tmp_path_factory.mktemp("rows"), COUNT)


@pytest.fixture(scope="module")
def plain(tiny_clip: Path, data: Path) -> ProbeReport:
    return dcsurgery.probe(tiny_clip, data)


def near(report: ProbeReport, other: ProbeReport) -> None:
    """Both say the same of every state."""
    assert report.loss == pytest.approx(other.loss, rel=1e-6)
    assert [item.state for item in report.states] == [item.state for item in other.states]
    scale = max(abs(item.gain.mean) for item in other.states)
    for mine, theirs in zip(report.states, other.states, strict=True):
        assert mine.gain.mean == pytest.approx(theirs.gain.mean, abs=1e-3 * scale)


def test_it_counts_what_it_used(plain: ProbeReport) -> None:
    assert (plain.rows, plain.pictures) == (COUNT - 1, COUNT - 1)
    assert (plain.rows_with_pictures, plain.rows_without_pictures) == (COUNT - 1, 1)
    assert plain.feature_layers == [3] and plain.installed == []
    assert [item.state for item in plain.states] == [0, 1, 2, 4]
    assert [item.name for item in plain.sets if item.name != "chosen"] == ["dci", "sci"]


@pytest.mark.parametrize("form", ["stock", "delta", "portable"])
def test_a_model_that_was_converted_and_not_trained_is_its_base(
    tiny_clip: Path, data: Path, plain: ProbeReport, tmp_path: Path, form: str
) -> None:
    dcsurgery.convert(tiny_clip, tmp_path / "out", form=form)
    report = dcsurgery.probe(tmp_path / "out", data)
    near(report, plain)
    assert report.base == plain.base and report.installed == []


def test_it_prints_itself(plain: ProbeReport) -> None:
    text = str(plain)
    assert text.split("\n")[0] == f"probe of {plain.model} on {plain.data}"
    assert plain.verdict in text and "expected gain of one hidden state" in text
    assert json.loads(plain.to_json()) == plain.to_dict() == plain.model_dump(mode="json")


@pytest.mark.parametrize("form", ["stock", "delta"])
def test_a_trained_connector_counts_as_what_is_read_today(
    tiny_clip: Path, data: Path, plain: ProbeReport, tmp_path: Path, form: str
) -> None:
    dcsurgery.convert(tiny_clip, tmp_path / "zero", form=form)
    stage_one(tmp_path / "zero", tmp_path / "out")
    report = dcsurgery.probe(tmp_path / "out", data)
    assert report.installed == [[0, 1], [2, 3]]
    assert report.loss != pytest.approx(plain.loss, rel=1e-3)
    # What dci reads is known by now: its blocks add nothing to themselves.
    (dci,) = (item for item in report.sets if item.name == "dci")
    assert abs(dci.gain.mean) < 1e-4


@pytest.mark.parametrize("connector", [None, "dci"])
def test_an_original_is_probed(data: Path, tmp_path: Path, connector: str | None) -> None:
    model = write_tiny_published(tmp_path / "llava", tower="clip", connector=connector)
    report = dcsurgery.probe(model, data, rows=20)
    assert report.base.original is not None and report.rows == 20
    halves = [list(range(12)), list(range(12, 24))]
    assert report.installed == (halves if connector else [])


def test_the_same_seed_says_the_same(tiny_clip: Path, data: Path, plain: ProbeReport) -> None:
    again = dcsurgery.probe(tiny_clip, data)
    fields = {"seconds"}
    assert again.model_dump(exclude=fields) == plain.model_dump(exclude=fields)
    settings = dcsurgery.TrainingSettings(seed=1)
    other = dcsurgery.probe(tiny_clip, data, rows=20, settings=settings)
    assert other.rows == 20
    assert other.states[0].gain != plain.states[0].gain


def test_bad_rows_are_counted_and_named(tiny_clip: Path, tmp_path: Path) -> None:
    path = write_data(tmp_path, COUNT)
    rows = json.loads(path.read_text())
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:200])
    rows[5]["conversations"][1]["value"] = " "
    path.write_text(json.dumps(rows))
    with pytest.raises(RequestError, match="cannot be used"):
        dcsurgery.probe(tiny_clip, path)
    report = dcsurgery.probe(tiny_clip, path, settings=dcsurgery.TrainingSettings(max_bad=20))
    assert report.skipped_rows == 3 and set(report.skipped) == {"row-3", "row-4", "row-5"}
    assert report.rows == COUNT - 4


def test_rows_of_one_picture_share_a_fold(tiny_clip: Path, tmp_path: Path) -> None:
    path = write_data(tmp_path, COUNT)
    rows = [row for row in json.loads(path.read_text()) if "image" in row]
    for number, row in enumerate(rows):
        row["image"] = f"{number // 3}.png"
        row["question_type"] = "colour" if number % 2 else "thing"
    path.write_text(json.dumps(rows))
    report = dcsurgery.probe(tiny_clip, path)
    assert (report.rows, report.pictures) == (28, 10)
    assert set(report.states[0].by_type) == {"colour", "thing"}
    with pytest.raises(RequestError, match="10 different pictures, too few for 6 folds"):
        dcsurgery.probe(tiny_clip, path, folds=6)


def test_what_cannot_be_probed_is_refused(tiny_clip: Path, data: Path, tmp_path: Path) -> None:
    dcsurgery.convert(tiny_clip, tmp_path / "sti", connector="sti", form="delta")
    with pytest.raises(PlanError, match="changes the image tokens") as caught:
        dcsurgery.probe(tmp_path / "sti", data)
    assert str(tiny_clip) in caught.value.hint
    dcsurgery.convert(tiny_clip, tmp_path / "paper", init="paper", form="delta")
    with pytest.raises(PlanError, match="random, and not trained yet"):
        dcsurgery.probe(tmp_path / "paper", data)
    text = tmp_path / "text.json"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    text.write_text(json.dumps([{"conversations": turns}] * 30))
    with pytest.raises(RequestError, match="none of the 30 rows"):
        dcsurgery.probe(tiny_clip, text)
    for values in ({"rows": 3}, {"folds": 2}):
        with pytest.raises(RequestError, match="too few"):
            dcsurgery.probe(tiny_clip, data, **values)


def advising(report: ProbeReport, path: Path, **recommended: Any) -> Path:
    """Write a probe's answer with advice of our own."""
    values = json.loads(report.model_dump_json())
    values["recommended"] = {"operate": True, "layers": "", "blocks": [], **recommended}
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("options", "blocks", "layout"),
    [
        ({}, [[1]], [[1]]),
        ({}, [[0], [2]], [[0], [2]]),
        ({"connector": "mix"}, [[0, 1], [2, 3]], [[0, 1], [2, 3]]),
        ({"connector": "sci"}, [[0], [2]], [[0], [2]]),
        ({"connector": "sti"}, [[1]], [[1]]),
    ],
)
def test_a_conversion_takes_its_layers(
    tiny_clip: Path, plain: ProbeReport, tmp_path: Path, options: Any, blocks: Any, layout: Any
) -> None:
    answer = advising(plain, tmp_path / "probe.json", blocks=blocks)
    layers = f"@{answer}"
    done = dcsurgery.convert(tiny_clip, tmp_path / "out", layers=layers, form="delta", **options)
    assert [list(group) for group in done.plan.layout.groups] == layout
    assert dcsurgery.verify(tmp_path / "out").passed


def test_a_conversion_refuses_what_is_not_meant_for_it(
    tiny_clip: Path, tiny_siglip: Path, plain: ProbeReport, tmp_path: Path
) -> None:
    answer = advising(plain, tmp_path / "probe.json", blocks=[[1]])
    out = tmp_path / "out"
    with pytest.raises(PlanError, match="probe of another model") as caught:
        dcsurgery.convert(tiny_siglip, out, layers=f"@{answer}")
    assert "dcsurgery probe" in caught.value.hint
    answer = advising(plain, tmp_path / "no.json", operate=False)
    with pytest.raises(PlanError, match="do not operate") as caught:
        dcsurgery.convert(tiny_clip, out, layers=f"@{answer}")
    assert "--layers 0,1" in caught.value.hint
    (tmp_path / "broken.json").write_text('{"schema_version": 1, "verdict": 3}')
    for name in ("broken.json", "missing.json", "."):
        with pytest.raises(RequestError):
            dcsurgery.convert(tiny_clip, out, layers=f"@{tmp_path / name}")
    assert not out.exists()


def test_a_training_takes_its_layers_too(
    tiny_clip: Path, plain: ProbeReport, data: Path, tmp_path: Path
) -> None:
    answer = advising(plain, tmp_path / "probe.json", blocks=[[1], [2]])
    settings = dcsurgery.TrainingSettings(max_steps=1, batch_size=2)
    done = dcsurgery.finetune(
        tiny_clip, data, tmp_path / "out", connector="dci", layers=f"@{answer}", settings=settings
    )
    assert done.conversion is not None and done.conversion.plan.layout.groups == ((1,), (2,))


def test_its_file_is_written_whole_and_replaces_nothing_else(
    tiny_clip: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "probe.json"
    report = dcsurgery.probe(tiny_clip, data, path)
    assert ProbeReport.model_validate_json(path.read_bytes()) == report
    assert [item.name for item in path.parent.iterdir()] == ["probe.json"]
    monkeypatch.setattr("dcsurgery.probing.probe.open_rows", None)  # refused before any work
    with pytest.raises(OutputExistsError, match="exists"):
        dcsurgery.probe(tiny_clip, data, path)
    path.write_text("notes of mine")
    with pytest.raises(OutputExistsError, match="is not a probe's"):
        dcsurgery.probe(tiny_clip, data, path, overwrite=True)
    assert path.read_text() == "notes of mine"
    with pytest.raises(DcSurgeryError, match="is a folder"):
        dcsurgery.probe(tiny_clip, data, tmp_path)
    save_picture(tmp_path / "other.png")


def test_its_page_says_the_same_and_needs_nothing_else(
    tiny_clip: Path, data: Path, tmp_path: Path
) -> None:
    page = tmp_path / "probe.html"
    report = dcsurgery.probe(tiny_clip, data, html=page, rows=20)
    text = page.read_text()
    root = ElementTree.fromstring(text.replace("<!doctype html>", "").replace(
        '<meta charset="utf-8">', "").replace(MARK, ""))  # fmt: skip
    assert report.verdict in "".join(root.itertext())
    bars = root.findall(".//svg/g")
    controls = [*report.null.feature, *report.null.shuffled]
    assert len(bars) == len(report.states) + len(controls)
    assert not re.search("https?:|<script|<link|<img", text)
    again = dcsurgery.probe(tiny_clip, data, html=page, rows=20, overwrite=True)
    assert again.states == report.states
    page.write_text("mine")
    with pytest.raises(OutputExistsError):
        dcsurgery.probe(tiny_clip, data, html=page, overwrite=True)
