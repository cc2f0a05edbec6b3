"""Everything from nothing with fresh seeds, and the table it ends in.

python -m tests.demo.full.run --work-dir full --towers 8
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dcsurgery import __version__
from dcsurgery.demo.arms import ARMS
from dcsurgery.demo.comparison import GROUPS, Difference, compare, shares
from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.figures import draw_blocks, draw_curves
from dcsurgery.demo.outcome import Outcome
from dcsurgery.demo.tables import SHOWN, interval, start_lines, table_rows, text_table, verdict
from dcsurgery.demo.training_story import check_fairness, run_units, wrap
from dcsurgery.demo.worker import RUNS, WORK, Unit, Work, cores
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.markdown import table
from tests.demo.full.pretrain import ensure_language, pretrain

Say = Callable[[str], None]
# Looked at more closely, asked more, about pictures of its own.
FULL = Exercise(
    test_scenes=500,
    test_seed=9001,
    looks=(5, 10, 15, 20, 25, 35, 50, 75, 100, 150, 200, 250),
)
# Neither the embedded models nor any choice of settings saw these seeds, or FULL's test.
FIRST_SEED = 101
TABLE, NUMBERS = "table.md", "table.json"


def run_full(
    work_dir: Path,
    say: Say = print,
    *,
    towers: int = 8,
    first_seed: int = FIRST_SEED,
    exercise: Exercise | None = None,
    workers: int | None = None,
) -> Path:
    """Pre-train `towers` LLaVAs, train every arm of each, and write table.md and table.json.

    Towers and projectors are made anew from a seed each, the language model once for all.

    Returns the table's path. A folder in which the same run stopped is gone on with. Raises
    RequestError for less than two towers, OutputExistsError for a folder that holds anything else.
    """
    if towers < 2:
        raise RequestError(f"{towers} towers give no interval", hint="use --towers 2 or more")
    started = time.perf_counter()
    count = cores() if workers is None else workers
    seeds = range(first_seed, first_seed + towers)
    told = Work(
        exercise=exercise or FULL,
        units=[
            Unit(tower=f"tower-{seed}", seed=seed, arm=arm, worker=index % max(1, count))
            for index, seed in enumerate(seeds)
            for arm in ARMS
        ],
    )
    _check_folder(work_dir, told)
    say(f"{towers} LLaVAs from nothing, seeds {seeds[0]} to {seeds[-1]}, {len(ARMS)} arms each,")
    say(f"on {count} cores, about ten minutes a tower and core, in")
    say(f"  {work_dir}")
    (work_dir / RUNS).mkdir(parents=True, exist_ok=True)
    (work_dir / WORK).write_text(told.model_dump_json(indent=1), encoding="utf-8")
    _make_bases(work_dir, seeds, count)
    outcomes = run_units(work_dir, told, count, say)
    check_fairness(outcomes)
    seconds = time.perf_counter() - started
    say("")
    for line in (*text_table(outcomes), ""):
        say(line)
    for line in (*verdict(outcomes), *start_lines(outcomes)):
        for part in wrap(line):
            say(f"  {part}")
    draw_curves(outcomes, work_dir / "curves.png")
    draw_blocks(outcomes, work_dir / "layers.png")
    numbers = _numbers(outcomes, told, seconds)
    (work_dir / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    lines = [*markdown_table(outcomes), "", *verdict(outcomes), "", *start_lines(outcomes)]
    (work_dir / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"\n  {work_dir / TABLE}, {NUMBERS}, curves.png, layers.png")
    return work_dir / TABLE


def _make_bases(work: Path, seeds: Sequence[int], workers: int) -> None:
    """Pre-train what is not there yet, in processes of one thread each, or here for 0 workers."""
    language = work / "language"
    ensure_language(seeds[0], language)
    folders = {seed: work / f"tower-{seed}" for seed in seeds}
    missing = [(seed, path) for seed, path in folders.items() if not path.exists()]
    if not workers:
        for seed, path in missing:
            _make_base(seed, path, language)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        for made in [pool.submit(_make_base, seed, path, language) for seed, path in missing]:
            made.result()


def _make_base(seed: int, folder: Path, language: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    pretrain(seed, partial, language)
    partial.rename(folder)


def markdown_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table as lines of Markdown, with the other comparisons."""
    columns = ("retrofit - control", "retrofit - repeated")
    head = ("questions, % right", *(ARMS[arm].name for arm in SHOWN), *columns)
    rows = []
    for row in table_rows(outcomes):
        other = interval(compare(outcomes, "retrofit", "repeated", row[0]))
        rows.append([cell.replace("*", "\\*") for cell in (*row, other)])
    return table(head, rows)


def _check_folder(work: Path, told: Work) -> None:
    if not work.exists() or (work.is_dir() and not any(work.iterdir())):
        return
    try:
        before = Work.model_validate_json((work / WORK).read_bytes())
    except (OSError, ValueError):
        before = None
    # The number of workers may differ.
    if before is None or _identity(before) != _identity(told):
        raise OutputExistsError(
            f"{work} holds something else than this run",
            hint="choose another --work-dir, or the same settings to go on",
        )


def _identity(told: Work) -> dict[str, Any]:
    return told.model_dump(exclude={"units": {"__all__": {"worker"}}})


def _numbers(outcomes: Sequence[Outcome], told: Work, seconds: float) -> dict[str, Any]:
    """Return everything the table is made of."""
    pairs = [("retrofit", other) for other in ARMS if other != "retrofit"]
    return {
        "schema_version": 1,
        "tool": f"dcsurgery {__version__}",
        "exercise": told.exercise.model_dump(mode="json"),
        "seeds": sorted({item.seed for item in outcomes}),
        "seconds": round(seconds),
        "seconds_of_arms": round(sum(item.seconds for item in outcomes)),
        "shares": {
            arm: {group: shares(outcomes, arm, group).tolist() for group in GROUPS} for arm in ARMS
        },
        "differences": {
            f"{arm} - {other}": {
                group: _told(compare(outcomes, arm, other, group)) for group in GROUPS
            }
            for arm, other in pairs
        },
        "curves": {
            arm: {item.tower: item.curve for item in outcomes if item.arm == arm} for arm in ARMS
        },
        "used": {
            item.tower: dict(zip(item.blocks, item.used, strict=True))
            for item in outcomes
            if item.arm == "retrofit"
        },
    }


def _told(difference: Difference) -> dict[str, Any]:
    """Return a difference for JSON, which has no NaN."""
    return {key: None if value != value else value for key, value in asdict(difference).items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, default=Path("full-demo"))
    parser.add_argument("--towers", type=int, default=8, help="how many models to make")
    wanted = parser.parse_args()
    run_full(wanted.work_dir, towers=wanted.towers)
