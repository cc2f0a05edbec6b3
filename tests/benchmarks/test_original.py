from __future__ import annotations

import math
import re
import subprocess
import sys

from tests.benchmarks.measure import ROOT
from tests.benchmarks.original import LIMIT, PARAMETERS, original_shapes


def test_the_original_has_the_true_parameters() -> None:
    assert sum(math.prod(shape) for _, _, shape in original_shapes(40)) == PARAMETERS


def test_a_true_size_13b_original_is_planned_and_converted_with_flat_memory() -> None:
    # Not from this process: a child's peak would start at its parent's size.
    command = [sys.executable, "-m", "tests.benchmarks.original"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peaks = dict(re.findall(r"^(\w+): .* peak memory (\d+) MB", done.stdout, re.MULTILINE))
    assert peaks.keys() == {"plan", "delta"}
    assert all(float(peak) * 1e6 < LIMIT for peak in peaks.values()), done.stdout
