"""Does the probe know which states will help? python -m tests.benchmarks.probe --work-dir DIR

For each of the demo's towers: what the probe predicts of every hidden state alone, and what a
training of the demo's length with a connector that reads this state alone takes off the loss of
unseen questions, beyond the same training without one. Their rank correlation is the answer; a
tower's states are the draws of its interval (Bonett and Wright 2000, Fisher's z). What is done is
kept in DIR, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcsurgery.demo.arms import Arm
from dcsurgery.demo.checkpoints import FEATURE_LAYER, embedded
from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.probed import probe_base
from dcsurgery.demo.rows import Rows, exam_rows, training_rows
from dcsurgery.demo.training import settings_of
from dcsurgery.training.loss import SupervisedHead, supervised_loss
from dcsurgery.training.trainer import train
from tests.demo.full.pretrain import ensure_language, pretrain

BATCH = 250
CONTROL = "control"
# Of the training; the probe's rows have another.
TRAINED = 1


def predict(base: Path, rows: int) -> dict[str, Any]:
    """Return the probe's gain of every state, and its verdict, on so many of the demo's rows."""
    fields = probe_base(base, rows)
    return {
        "states": {str(item.state): item.gain.mean for item in fields["states"]},
        "floor": fields["null"].floor,
        "sets": {item.name: [item.layers, item.gain.mean] for item in fields["sets"]},
        "expected": [getattr(fields["expected"], name) for name in ("mean", "low", "high")],
        "verdict": fields["verdict"],
    }


def loss_after(base: Path, layers: str, folder: Path, exercise: Exercise) -> float:
    """Return the loss per answer token on unseen questions after training one arm."""
    start = "held" if layers == CONTROL else "zero"
    arm = Arm(layers, layers, None if layers == CONTROL else layers, start=start)
    model, plan = arm.build(base, folder / "start")
    number = exercise.steps * exercise.batch_size
    rows = training_rows(TRAINED, exercise.train_scenes, number)
    settings = settings_of(exercise, TRAINED)
    train(model, plan, rows, rows.batch, settings, output_dir=folder / "log")
    return exam_loss(model, exam_rows(exercise.test_seed, "test", exercise.test_scenes))


@torch.no_grad()
def exam_loss(model: Any, exam: Rows) -> float:
    """Return the mean loss per answer token."""
    head, total, tokens = SupervisedHead(model), 0.0, 0
    for start in range(0, len(exam), BATCH):
        batch = exam.batch(np.arange(start, min(start + BATCH, len(exam))))
        total += float(supervised_loss(model, head, batch))
        tokens += int((batch["labels"][:, 1:] != -100).sum())
    head.remove()
    return total / tokens


def spearman(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return the rank correlation and its 95 % interval."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    found = float(np.corrcoef(*ranks)[0, 1])
    error = 1.96 * math.sqrt((1 + found**2 / 2) / (len(first) - 3))
    z = math.atanh(min(max(found, -0.999), 0.999))
    return found, math.tanh(z - error), math.tanh(z + error)


def kept(path: Path, make: Any) -> Any:
    """Return what a file holds, made and written whole where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(json.dumps(make()), encoding="utf-8")
        os.replace(partial_path, path)
    return json.loads(path.read_bytes())


def tower_of(number: int, work: Path) -> Path:
    """Return an embedded tower (1 to 3), or make one that nobody has looked at."""
    if number <= len(embedded()):
        return Path(embedded()[number - 1])
    base = work / f"tower-{number}"
    if not base.exists():
        ensure_language(0, work / "language.pt")
        pretrain(number, base.with_name(f"{base.name}.partial"), work / "language.pt")
        base.with_name(f"{base.name}.partial").rename(base)
    return base


def table(results: Mapping[int, Mapping[str, Any]], rows: Sequence[int]) -> str:
    """Return the gains, loss x 1000, and the correlations as Markdown."""
    states = list(next(iter(results.values()))["trained"])
    lines = ["| | " + " | ".join(states) + " | Spearman |", "|---" * (len(states) + 2) + "|"]
    for number, found in results.items():
        trained = list(found["trained"].values())
        cells = " | ".join(f"{1000 * gain:.1f}" for gain in trained)
        lines.append(f"| tower {number}, trained | {cells} | |")
        for count in rows:
            predicted = [found["predicted"][str(count)]["states"][state] for state in states]
            cells = " | ".join(f"{1000 * gain:.1f}" for gain in predicted)
            rho, low, high = spearman(predicted, trained)
            lines.append(f"| {count:,} rows | {cells} | {rho:.2f} [{low:.2f}, {high:.2f}] |")
    return "\n".join(lines)


def main() -> None:
    """Do what is left, and print the table after every tower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--towers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--states", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=Exercise().steps)
    told = parser.parse_args()
    torch.set_num_threads(1)
    exercise = Exercise(steps=told.steps)
    results: dict[int, dict[str, Any]] = {}
    for number in told.towers:
        base, folder = tower_of(number, told.work_dir), told.work_dir / f"probe-{number}"
        predicted = {
            str(rows): kept(folder / f"rows-{rows}.json", partial(predict, base, rows))
            for rows in told.rows
        }
        states = [int(state) for state in next(iter(predicted.values()))["states"]]
        wanted = [state for state in told.states or states if state != FEATURE_LAYER]
        losses = {}
        for layers in (CONTROL, *map(str, wanted)):
            place = folder / layers
            make = partial(loss_after, base, layers, place, exercise)
            losses[layers] = kept(folder / f"{layers}-{told.steps}.json", make)
            print(f"tower {number}, {layers}: loss {losses[layers]:.5f}", flush=True)
        trained = {layers: losses[CONTROL] - loss for layers, loss in losses.items()}
        trained.pop(CONTROL)
        results[number] = {"predicted": predicted, "trained": trained}
        print(table(results, told.rows), flush=True)
        for rows, found in predicted.items():
            print(f"{rows} rows: {found['verdict']}; {found['sets']}", flush=True)


if __name__ == "__main__":
    main()
