"""What a training will do, and what it did: both print themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcsurgery.data.batches import Measured
from dcsurgery.data.census import Census
from dcsurgery.data.conversations import BadRow
from dcsurgery.data.samples import Sample
from dcsurgery.data.tally import Losses
from dcsurgery.printing import units
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.surgery.conversion import Conversion
from dcsurgery.surgery.plan_file import TrainingRecord
from dcsurgery.training.estimate import Estimate
from dcsurgery.training.freeze import Trained
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trainer import TrainingResult

LISTED_ROWS = 5


@dataclass(frozen=True)
class TrainingPlan(Printed):
    """What a training would do, and would need.

    `measured` is what became of a sample of rows, None for a stream; `advice` is for people.
    `merged` are the weights that LoRA of an earlier training is added to.
    """

    model: str
    trained: Trained
    settings: TrainingSettings
    steps: int
    rows: int
    bad: tuple[BadRow, ...]
    census: Census
    samples: tuple[Sample, ...]
    estimate: Estimate
    batch: tuple[int, int, int]
    measured: Measured | None = None
    advice: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        return {
            "schema_version": 1,
            "dry_run": True,
            "trained": _trained(self.trained),
            "settings": asdict(self.settings),
            "steps": self.steps,
            "rows": self.rows,
            "bad_rows": [asdict(bad) for bad in self.bad],
            **self.census.facts(),
            "measured": None if self.measured is None else asdict(self.measured),
            "advice": list(self.advice),
            "merged": list(self.merged),
            "samples": [asdict(sample) for sample in self.samples],
            "estimate": {**asdict(self.estimate), "memory": self.estimate.memory},
        }

    def show(self, out: Sheet) -> None:
        """Put the whole plan on a sheet."""
        settings, needs = self.settings, self.estimate
        out.show(f"plan: train {self.model} for {units.plural(self.steps, 'step')}", "bold")
        size, count, workers = self.batch
        batch = f"{size} at a time x {count} before an update x {units.plural(workers, 'process')}"
        rates = {
            "connector": settings.connector_lr,
            "projector": settings.projector_lr,
            "language": settings.lr,
            "tower": settings.tower_lr,
        }
        lines = [f"{group}: {rates[group]:g}" for group in self.trained.groups]
        memory = (
            f"{units.size(needs.memory)}: weights {units.size(needs.parameters)}, gradients "
            f"{units.size(needs.gradients)}, optimiser {units.size(needs.optimizer)}, activations "
            f"{units.size(needs.activations)}"
        )
        total = units.seconds(needs.seconds_per_step * self.steps)
        out.facts(
            [
                *_groups(self.trained),
                *[("merged", line) for line in told_merged(self.merged)],
                ("rates", "\n".join(lines)),
                ("rows", f"{self.rows:,}{self._looked_at()}{_skipped(self.bad)}"),
                ("images", self.census.pictures()),
                *_lost(self._lines()),
                ("batch", f"{settings.batch_size} rows: {batch}"),
                ("memory", memory),
                ("time", f"about {total}, {units.seconds(needs.seconds_per_step)} for one step"),
            ]
        )
        for sample in self.samples:
            cut = ", cut" if sample.truncated else ""
            out.heading(f"{sample.id}: {sample.tokens} tokens, {sample.supervised} supervised{cut}")
            layout = f"{sample.layout}, from {', '.join(sample.keys)}"
            layout += f"; unread: {', '.join(sample.rest)}" if sample.rest else ""
            facts = [("layout", layout), ("images", str(sample.images))]
            out.facts([*facts, ("question", sample.question), ("answer", sample.answer)])
            out.passage(sample.pieces)

    @property
    def hints(self) -> list[str]:
        """The advice that is not on the sheet."""
        return [line for line in self.advice if line not in self._lines()]

    def _looked_at(self) -> str:
        return "" if self.measured is None else f", {self.measured.rows:,} looked at closely"

    def _lines(self) -> list[str]:
        """Say what rows of the sample lose."""
        if self.measured is None:
            return []
        of = f" of {self.measured.rows:,} that were looked at"
        return self.measured.losses.lines(self.settings.max_length, of=of)


@dataclass(frozen=True)
class Finetuned(Printed):
    """A finished finetune_connector: what was trained, how it went, and what was written.

    `merged` are the weights that LoRA of an earlier training was added to before the first step.
    """

    output: Path
    result: TrainingResult
    record: TrainingRecord
    bad: tuple[BadRow, ...]
    census: Census
    conversion: Conversion | None
    advice: tuple[str, ...] = ()
    merged: tuple[str, ...] = ()

    @property
    def untouched(self) -> dict[str, list[str]]:
        """The parameters that never had a gradient, by group."""
        found: dict[str, list[str]] = {}
        for name in self.result.untouched:
            found.setdefault(self.result.trained.group_of(name), []).append(name)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        conversion = self.conversion
        return {
            "schema_version": 1,
            "dry_run": False,
            "output": str(self.output),
            "trained": _trained(self.result.trained),
            "resumed_at": self.result.resumed_at,
            "record": self.record.model_dump(mode="json"),
            "untouched": self.untouched,
            "advice": list(self.advice),
            "merged": list(self.merged),
            "bad_rows": [asdict(bad) for bad in self.bad],
            "plan": None if conversion is None else conversion.plan.model_dump(mode="json"),
        }

    def show(self, out: Sheet) -> None:
        """Put what was trained and written on a sheet."""
        record, result = self.record, self.result
        lost = Losses(record.cut_rows, record.cut_answers, record.dropped)
        counts = {group: len(names) for group, names in result.trained.groups.items()}
        untouched = "\n".join(
            f"{group}: {len(names)} of {units.plural(counts[group], 'tensor')}, "
            "never had a gradient and stay as they were"
            for group, names in self.untouched.items()
        )
        out.show(f"{self.output}: trained for {units.plural(result.steps, 'step')}", "bold")
        resumed = f", resumed at step {result.resumed_at}" if result.resumed_at else ""
        rows = [
            *_groups(result.trained),
            *[("merged", line) for line in told_merged(self.merged)],
            *([("untrained", untouched)] if untouched else []),
            ("data", f"{record.data}: {units.plural(record.rows, 'row')}{_skipped(self.bad)}"),
            ("images", self.census.pictures()),
            *_lost(lost.lines(record.settings["max_length"])),
            ("epochs", f"{record.epochs:g}, batches of {record.batch_size}{resumed}"),
            ("loss", f"{record.first_loss:.4f} -> {record.last_loss:.4f}"),
            ("time", units.seconds(record.seconds)),
            ("log", "dense_connector/training.jsonl, dense_connector/training.png"),
        ]
        if self.conversion is not None:
            rows.append(("loads with", self.conversion.plan.loader))
        out.facts(rows)


def told_merged(merged: Sequence[str]) -> list[str]:
    """Return a line on LoRA that was added to weights, none where it was not."""
    weights = units.plural(len(merged), "weight")
    return [f"LoRA of the earlier training is added to {weights}"] if merged else []


def _trained(trained: Trained) -> dict[str, Any]:
    return {
        group: {"parameters": trained.counts[group], "tensors": list(names)}
        for group, names in trained.groups.items()
    }


def _groups(trained: Trained) -> list[tuple[str, str]]:
    lines = [
        f"{group}: {units.count(trained.counts[group])} in {units.plural(len(names), 'tensor')}"
        for group, names in trained.groups.items()
    ]
    return [("trains", "\n".join(lines))]


def _lost(lines: list[str]) -> list[tuple[str, str]]:
    return [("lost", "\n".join(lines))] if lines else []


def _skipped(bad: tuple[BadRow, ...]) -> str:
    if not bad:
        return ""
    named = [f"\n{row.id}: {row.reason}" for row in bad[:LISTED_ROWS]]
    more = f"\nand {len(bad) - LISTED_ROWS} more" if len(bad) > LISTED_ROWS else ""
    return f", {len(bad)} skipped:" + "".join(named) + more
