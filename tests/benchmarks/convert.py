"""Measure conversions against `cp -r` and against load, edit, save with transformers.

    python -m tests.benchmarks.convert [--scale 0.1] [--repeat 3] [--work-dir DIR]

Writes a synthetic checkpoint with the shapes, names and shards of llava-hf/llava-1.5-7b-hf, runs
every command as a process of its own, in turns, prints a Markdown table and exits with 1 when a
limit is missed.

What makes the comparison fair: before every run pending writes are flushed and the source is
dropped from the page cache; every copy is durable when its clock stops (dcsurgery syncs by itself,
`cp` and transformers are followed by `sync FILE...` inside the measured time).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.measure import Run, Series, forget, measure
from tests.benchmarks.report import describe, judge, table

# 172 instead of 32 language layers: five times the bytes, 70.8 GB.
LARGE = 5.375
START_RUNS = 9
MODULE = [sys.executable, "-m"]
TOOL = [*MODULE, "dcsurgery"]
SYNC = 'sync "$1"/* "$1"'


@dataclass(frozen=True)
class Case:
    """A command to measure: its row in the table, made from source and target folders."""

    group: str
    name: str
    command: Callable[[str, str], list[str]]


def _shell(script: str) -> Callable[[str, str], list[str]]:
    return lambda source, target: ["sh", "-ec", script, source, target]


def _convert(*options: str) -> Callable[[str, str], list[str]]:
    return lambda source, target: [*TOOL, "convert", source, "-o", target, "--quiet", *options]


def _load_edit_save(source: str, target: str) -> list[str]:
    save = f'"$2" -m tests.benchmarks.load_edit_save "$0" "$1"; {SYNC}'
    return ["sh", "-ec", save, source, target, sys.executable]


COPIES = (
    Case("copy", "cp -r", _shell(f'cp -r "$0" "$1"; {SYNC}')),
    Case("copy", "stock, copied", _convert("--form", "stock")),
    Case("copy", "stock, --link", _convert("--form", "stock", "--link")),
    Case("delta", "delta", _convert("--form", "delta")),
    Case("transformers", "transformers: load, edit, save", _load_edit_save),
)
LARGE_COPIES = (
    Case("large", "stock, --link, 5x model", _convert("--form", "stock", "--link")),
    Case("large", "delta, 5x model", _convert("--form", "delta")),
)
STARTS = (
    Case("start", "python -c 'import typer'", lambda *_: [sys.executable, "-c", "import typer"]),
    Case("start", "dcsurgery --help", lambda *_: [*TOOL, "--help"]),
    Case("start", "dcsurgery inspect", lambda s, _: [*TOOL, "inspect", s]),
)
GROUPS = ("copy", "delta", "transformers", "large", "start")


def main() -> int:
    """Run the benchmark; returns the exit status."""
    options = _options()
    chosen = set(options.only or GROUPS)
    with _work_folder(options) as work:
        source = _synthetic(work / "model", options.scale)
        size = sum(path.stat().st_size for path in source.iterdir())
        _require_room(work, 0 if not chosen & {"copy", "transformers"} else size)
        print(describe(source, size, _file_system(work)), flush=True)
        series: dict[str, Series] = {}
        try:
            _run_all(chosen, source, work, options, series)
            failed = None
        except RuntimeError as error:
            failed = str(error)
    limits = judge(series)
    print(table(series, limits))
    if options.json:
        text = {
            "model_bytes": size,
            "runs": {name: [asdict(run) for run in one.runs] for name, one in series.items()},
            "limits": [asdict(limit) for limit in limits],
        }
        options.json.write_text(json.dumps(text, indent=2) + "\n")
    if failed:
        print(f"\nstopped: {failed}", file=sys.stderr)
    return 0 if not failed and all(limit.passed for limit in limits) else 1


def _run_all(
    chosen: set[str],
    source: Path,
    work: Path,
    options: argparse.Namespace,
    series: dict[str, Series],
) -> None:
    """Run the chosen groups into `series`. Raises RuntimeError when a command fails."""
    _in_turns([c for c in STARTS if c.group in chosen], source, work, START_RUNS, series)
    if "large" in chosen:
        large = _synthetic(work / "large", LARGE * options.scale, sparse=True)
        _in_turns(LARGE_COPIES, large, work, 1, series)
    _in_turns([c for c in COPIES if c.group in chosen], source, work, options.repeat, series)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of 14.1 GB (1.0)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of every copy (3)")
    parser.add_argument("--only", action="append", choices=GROUPS, help="measure this group only")
    parser.add_argument("--work-dir", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--keep", action="store_true", help="keep the synthetic checkpoint")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    return parser.parse_args()


@contextmanager
def _work_folder(options: argparse.Namespace) -> Iterator[Path]:
    if options.work_dir:
        options.work_dir.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="dcsurgery-benchmark-", dir=options.work_dir)).resolve()
    try:
        yield work
    finally:
        if options.keep:
            print(f"kept: {work}", file=sys.stderr)
        else:
            shutil.rmtree(work)


def _synthetic(folder: Path, scale: float, *, sparse: bool = False) -> Path:
    command = [*MODULE, "tests.benchmarks.synthetic", str(folder), "--scale", str(scale)]
    measure(command + ["--sparse"] * sparse)
    return folder


def _require_room(work: Path, size: int) -> None:
    needed, free = int(1.1 * size), shutil.disk_usage(work).free
    if free < needed:
        sys.exit(f"{needed / 1e9:.1f} GB are needed at {work}, {free / 1e9:.1f} GB are free")


def _file_system(work: Path) -> str:
    found = subprocess.run(
        ["stat", "-f", "-c", "%T", str(work)], capture_output=True, text=True, check=False
    )
    return f"{found.stdout.strip() or 'unknown file system'}, {platform.system()}"


def _in_turns(
    cases: Sequence[Case],
    source: Path,
    work: Path,
    repeat: int,
    series: dict[str, Series],
) -> None:
    """Run every case once per round, so that a slow minute of the machine hits all alike."""
    if cases:
        # Unmeasured: no side pays for reading the installed packages from disk.
        measure([sys.executable, "-c", "import numpy, pydantic, torch, transformers, typer"])
    for number in range(repeat):
        for case in cases if number % 2 == 0 else reversed(cases):
            run = _once(case, source, work / "out")
            series.setdefault(case.name, Series(case.name)).runs.append(run)
            print(f"{case.name}: {run.seconds:.2f} s", file=sys.stderr, flush=True)


def _once(case: Case, source: Path, target: Path) -> Run:
    if case.group != "start" or "inspect" in case.name:
        forget(source)
    try:
        return measure(case.command(str(source), str(target)))
    finally:
        shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
