"""Run the announced trials and print their table: python -m tests.benchmarks.smol.trials DIR

One trial for each training set that `tests.benchmarks.smol.base` wrote, each with its own seed;
what is done is kept, and the same command goes on. Trainings that are done are told together:
every row's scores are averaged over them first, pictures are the units.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from dcsurgery.data.conversations import BadRow
from dcsurgery.data.rows import read_rows
from dcsurgery.evaluation.answers import FILE, Answer, read_answers
from dcsurgery.evaluation.trial_report import Gain
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.trials.compare import Results
from dcsurgery.trials.trial import try_model
from tests.benchmarks.smol.base import TRAIN_SEEDS

ARMS = ("base", "control", "repeated", "dci", "chosen")
METRICS = ("loss", "exact")
AGAINST = (("chosen", "control"), ("dci", "control"), ("repeated", "control"), ("chosen", "dci"))
SETTINGS: dict[str, Any] = {
    "batch_size": 16, "micro_batch": 16, "max_steps": 50, "precision": "bf16",
    "connector_lr": 1e-3, "projector_lr": 5e-4,
}  # fmt: skip


def run(folder: Path, seed: int) -> None:
    """Do what is left of the trial of one training set."""
    report = try_model(
        folder / "base", folder / f"train-{seed}.json", folder / "test.json",
        folder / f"trial-{seed}", arms=ARMS if seed == TRAIN_SEEDS[0] else ARMS[1:], seeds=1,
        metric="exact", settings=TrainingSettings(seed=seed, **SETTINGS),
        max_new_tokens=6, eval_batch=24, dtype="bfloat16", say=lambda line: print(line, flush=True),
    )  # fmt: skip
    print(report.verdict, flush=True)


def read(folder: Path) -> dict[str, dict[str, list[dict[int, Answer]]]]:
    """Return the answers of every arm by metric, one entry for each finished trial."""
    found: dict[str, dict[str, list[dict[int, Answer]]]] = {}
    for seed in TRAIN_SEEDS:
        work = folder / f"trial-{seed}"
        if not (work / "trial.json").exists():
            continue
        left = json.loads((work / "trial.json").read_text())["left_out"]
        for arm in ARMS:
            # Chosen states that are dci's own are one arm.
            twin = "dci" if arm == "chosen" and "dci arm again" in left.get(arm, "") else arm
            for metric in METRICS:
                name = twin if arm == "base" else f"{twin}-{seed}"
                place = work / "answers" / f"{name}-{metric}"
                if (place / FILE).exists():
                    found.setdefault(arm, defaultdict(list))[metric].append(read_answers(place))
    return found


def table(folder: Path) -> None:
    """Print arms and gains of the finished trials, as docs/evidence.md has them."""
    found = read(folder)
    rows = {at: row for at, row in enumerate(read_rows(folder / "test.json"))}
    known = {at: row for at, row in rows.items() if not isinstance(row, BadRow)}
    for metric in METRICS:
        results = Results(known, found, metric)
        kinds = [None, *results.kinds]
        print(f"\n| {metric} | " + " | ".join(kind or "all" for kind in kinds) + " |")
        print("|---" * (len(kinds) + 1) + "|")
        for arm in found:
            scores = [f"{results.score(arm, metric, kind).mean:.3f}" for kind in kinds]
            print(f"| {arm} | " + " | ".join(scores) + " |")
        for one, two in AGAINST:
            if one in found and two in found:
                gains = [_told(results.gain(one, two, metric, kind)) for kind in kinds]
                print(f"| {one} minus {two} | " + " | ".join(gains) + " |")
                own = results.gain(one, two, metric).seeds
                print(f"| its runs | {', '.join(f'{gain:+.3f}' for gain in own)} |")


def _told(gain: Gain) -> str:
    return f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def main() -> None:
    """Run all trials, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true", help="print what is done, run nothing")
    told = parser.parse_args()
    for seed in () if told.table else TRAIN_SEEDS:
        run(told.folder, seed)
    table(told.folder)


if __name__ == "__main__":
    main()
