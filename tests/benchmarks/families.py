"""Inspect, convert and verify a published model's true shape of every family.

    python -m tests.benchmarks.families [--only FAMILY] [--features] [--results FILE] [--write]

The checkpoints are holes in files: true headers and lengths, no data and no disk. Every command is
a process of its own. `verify` is measured for the structure alone; `--features` also runs it as
users do, with the features of a photograph. Results are kept in FILE and not measured again;
`--write` puts the table into docs/families.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import ROOT, Run, measure
from tests.benchmarks.original import write_sparse
from tests.benchmarks.published import PUBLISHED, published_config, published_shapes

PAGE = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- measured families -->", "<!-- end of measured families -->"
TOOL = [sys.executable, "-m", "dcsurgery"]
SELF = [sys.executable, "-m", "tests.benchmarks.families"]
STEPS = ("inspect", "convert", "structure", "features")


def main() -> int:
    """Run what is asked for; returns the exit status."""
    options = _options()
    if options.make:
        family, folder = options.make
        shapes = published_shapes(family)
        write_sparse(Path(folder), shapes, published_config(family))
        print(json.dumps({"parameters": sum(math.prod(s) for _, _, s in shapes)}))
        return 0
    if options.structure:
        return verify_structure(options.structure)
    results: dict[str, Any] = {}
    if options.results.is_file():
        results = json.loads(options.results.read_text())
    for family in options.only or PUBLISHED:
        if family not in results:
            results[family] = measure_family(family, features=options.features)
            options.results.write_text(json.dumps(results, indent=1) + "\n")
            print(family, results[family], file=sys.stderr, flush=True)
    text = table(results)
    if options.write:
        PAGE.write_text(_replaced(PAGE.read_text(), text))
    print(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=[*PUBLISHED], help="this family only")
    kept = Path(tempfile.gettempdir()) / "dcsurgery-families.json"
    parser.add_argument("--results", type=Path, default=kept, help=f"what was measured ({kept})")
    parser.add_argument("--features", action="store_true", help="run the whole of verify too")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--structure", help=argparse.SUPPRESS)
    return parser.parse_args()


def verify_structure(folder: str) -> int:
    """Run the checks of `verify` that read files alone; 3 when one fails."""
    from dcsurgery.verification.pair import open_pair
    from dcsurgery.verification.structure import structure_checks

    checks = structure_checks(open_pair(folder, None, whole=False), deep=False)
    for check in checks:
        print(check)
    return 0 if all(check.passed for check in checks) else 3


def measure_family(family: str, *, features: bool) -> dict[str, Any]:
    """Make a family's checkpoint, run every command on it, remove both.

    A command that fails leaves its message, and the ones after it undone.
    """
    with tempfile.TemporaryDirectory(prefix=f"dcsurgery-{family}-") as work:
        model, output = f"{work}/model", f"{work}/output"
        made = subprocess.run(
            [*SELF, "--make", family, model], cwd=ROOT, capture_output=True, text=True, check=True
        )
        steps = {
            "inspect": [*TOOL, "inspect", model],
            "convert": [*TOOL, "convert", model, "--form", "delta", "-o", output, "--quiet"],
            "structure": [*SELF, "--structure", output],
        }
        if features:
            steps["features"] = [*TOOL, "verify", output]
        found: dict[str, Any] = json.loads(made.stdout)
        for step, command in steps.items():
            try:
                found[step] = asdict(measure(command))
            except RuntimeError as error:
                return {**found, "failed": {step: str(error)[-2000:]}}
        return found


def table(results: Mapping[str, Any]) -> str:
    """Return the paragraph and the Markdown table, one row for each family."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    lines = [
        f"Measured on {date.today()}, {os.cpu_count()} CPU cores, {memory:.0f} GiB of memory, "
        f"Python {sys.version.split()[0]}. A cell is wall time in seconds, the processor's time in "
        "seconds where it differs (the machine did other work as well), and the peak of resident "
        "memory. Nothing in the last column: not measured.",
        "",
        "| family | shape of | parameters | sizes from | inspect | convert --form delta | "
        "verify, structure | verify |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family, found in sorted(results.items()):
        known = PUBLISHED[family]
        cells = [_cell(found, step) for step in STEPS]
        size = f"{found['parameters'] / 1e9:.2f} B"
        row = (family, known.repository, size, known.source, *cells)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any], step: str) -> str:
    if step not in found:
        return "failed" if step in found.get("failed", {}) else ""
    run = Run(**found[step])
    digits = 1 if run.seconds < 10 else 0
    seconds, computed = f"{run.seconds:.{digits}f}", f"{run.processor:.{digits}f}"
    size = f"{run.peak_rss / 1e9:.1f} GB" if run.peak_rss >= 1e9 else f"{run.peak_rss / 1e6:.0f} MB"
    return f"{seconds} s{f' ({computed} s)' * (seconds != computed)}, {size}"


def _replaced(page: str, text: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    sys.exit(main())
