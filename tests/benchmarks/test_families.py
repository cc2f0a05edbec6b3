"""The benchmark of the families: every family has a true shape, and a row on the page."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dcsurgery.architectures import available, find_architecture
from tests.architectures.published import entries
from tests.benchmarks.families import BEGIN, END, PAGE, STEPS, table
from tests.benchmarks.measure import ROOT
from tests.benchmarks.published import PUBLISHED, published_config, published_shapes

FAMILIES = [found.name for found in available()]
CELL = re.compile(r"[\d.]+ s( \([\d.]+ s\))?, [\d.]+ [MG]B")
# Parameters of the published files, as the Hub counts them.
COUNTED = {"gemma3": 4_300_079_472, "llava": 7_063_427_072, "qwen2_5_vl": 8_292_166_656}


def rows() -> dict[str, list[str]]:
    """The cells of each family's row on the page."""
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[1:]}


def test_every_family_has_a_true_shape() -> None:
    assert sorted(PUBLISHED) == FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_row_with_time_and_memory_of_each_command(family: str) -> None:
    cells = rows()[family]
    known = PUBLISHED[family]
    assert [cells[0], cells[2]] == [known.repository, known.source]
    # The last column is measured on request.
    assert all(CELL.fullmatch(cell) for cell in cells[3 : 2 + len(STEPS)]), cells
    assert not cells[-1] or CELL.fullmatch(cells[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_are_those_in_the_name(family: str) -> None:
    counted = 1e9 * float(rows()[family][1].removesuffix(" B"))
    named = re.search(r"-([\d.]+)([BT])(-|$)", PUBLISHED[family].repository.upper())
    stated = float(named[1]) * {"B": 1e9, "T": 1e12}[named[2]] if named else 0
    # Names of the smallest models count the language model alone; Llama 4's, one expert of 16.
    assert stated < 2e9 or family == "llama4" or counted == pytest.approx(stated, rel=0.2)


@pytest.mark.parametrize("family", COUNTED)
def test_a_true_shape_has_the_published_number_of_parameters(family: str) -> None:
    shapes = published_shapes(family)
    assert sum(math.prod(shape) for _, _, shape in shapes) == COUNTED[family]
    config = published_config(family)
    found = find_architecture(config)
    assert found.name == family
    assert found.dissect(config, entries({name: shape for name, _, shape in shapes})).image_tokens


@pytest.mark.slow
def test_the_benchmark_measures_a_family_and_not_again(tmp_path: Path) -> None:
    kept = tmp_path / "results.json"
    command = [sys.executable, "-m", "tests.benchmarks.families", "--only", "internvl"]
    command += ["--results", str(kept)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = json.loads(kept.read_text())
    assert set(results["internvl"]) == {"parameters", "inspect", "convert", "structure"}
    assert table(results) == first.stdout.strip()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
