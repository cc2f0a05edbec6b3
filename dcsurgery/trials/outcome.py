"""From finished units to the report: who answered what, what it cost, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.data.conversations import BadRow, Row
from dcsurgery.data.rows import read_rows
from dcsurgery.data.tally import Losses
from dcsurgery.errors import VerificationError
from dcsurgery.evaluation.intervals import TEST
from dcsurgery.evaluation.trial_report import (
    RETROFITS,
    Differences,
    Probed,
    TrialArm,
    TrialReport,
    TrialRun,
)
from dcsurgery.printing import units
from dcsurgery.probing.probe_report import ProbeReport
from dcsurgery.recipes.resolve import installed
from dcsurgery.trials.arms import TITLES, Arm
from dcsurgery.trials.compare import Results
from dcsurgery.trials.cost import Log, estimate_a100
from dcsurgery.trials.differences import count_differences
from dcsurgery.trials.units import Asked, Unit, Workshop
from dcsurgery.trials.verdict import decide

MEMORY = "{} of the test's pictures are in the training data too: what is gained may be memory"


@dataclass(frozen=True)
class Outcome:
    """What was done: arms and units, why other arms were left out, what the probe said.

    `heeded`: nothing was trained, because the probe advised against it.
    """

    arms: Sequence[Arm]
    units: Sequence[Unit]
    left_out: Mapping[str, str]
    probed: ProbeReport | None
    heeded: bool = False

    def of(self, arm: Arm) -> list[Unit]:
        """Return the units of an arm, by seed."""
        return [unit for unit in self.units if unit.arm is arm]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the trainings."""
        return sorted({unit.seed for unit in self.units if unit.seed is not None})

    @property
    def judged(self) -> str | None:
        """The arm that the verdict is about: the chosen states, else dci's."""
        names = [arm.name for arm in self.arms]
        return next((name for name in RETROFITS if name in names), None)


def make_report(shop: Workshop, done: Outcome, checkpoint: Checkpoint, **facts: Any) -> TrialReport:
    """Return the report of a trial of a model; `facts` are fields that are known before.

    Raises VerificationError when arms did not see the same batches.
    """
    asked, metric = shop.asked, shop.asked.metrics[0]
    check_fairness(shop, done)
    answers = {
        arm.name: {m: [shop.read_answers(unit, m) for unit in done.of(arm)] for m in asked.metrics}
        for arm in done.arms
    }
    results = Results(rows_of_test(asked), answers, metric, asked.settings.seed)
    names = [arm.name for arm in done.arms]
    versus = [
        results.versus(one, two) for at, one in reversed([*enumerate(names)]) for two in names[:at]
    ]
    found = {item.against: item for item in versus if item.arm == done.judged}
    decision, sentence = decide(done.judged, found, metric, len(done.seeds))
    if done.heeded and done.probed is not None:
        decision, sentence = "not shown", f"not shown: nothing was trained: {done.probed.verdict}"
    first = shop.stamps(done.units[0])[-1].result["eval"]
    return TrialReport.model_validate(
        {
            "verdict": sentence,
            "decision": decision,
            "judged": done.judged,
            "metric": metric,
            "model": asked.model,
            "data": asked.data,
            "data_sha256": asked.digests["data"],
            "test": asked.test,
            "test_sha256": asked.digests["test"],
            "rows": len(results.places),
            "pictures": len(set(results.clusters)),
            "shared_pictures": shop.shared,
            "skipped_rows": first["rows"] + first["skipped_rows"] - len(results.places),
            "differences": _differences(results, done),
            "estimate": estimate_a100(checkpoint, _logs(shop, done)),
            "statistics": TEST,
            "projector_sha256": _projector(shop, done),
            "seeds": done.seeds,
            "probe": _probed(done.probed),
            "left_out": dict(done.left_out),
            "arms": [_arm(shop, arm, done.of(arm), results) for arm in done.arms],
            "comparisons": versus,
            "settings": _settings(asked),
            "versions": installed(),
            "warnings": [*tell_untyped(results), *_warnings(shop, done, first)],
            **facts,
        }
    )


def _projector(shop: Workshop, done: Outcome) -> dict[str, str]:
    trained = next((unit for unit in done.units if unit.seed is not None), None)
    found = {} if trained is None else shop.plan(trained).relies_on
    return {name: digest for name, digest in found.items() if digest}


def shared_pictures(asked: Asked) -> int:
    """Return how many pictures of the test the training data names too."""
    rows = read_rows(asked.data, images=asked.images, split=asked.split, columns=asked.columns)
    trained = {image.key for row in rows if not isinstance(row, BadRow) for image in row.images}
    tested = {image.key for row in rows_of_test(asked).values() for image in row.images}
    return len(trained & tested)


def _warnings(shop: Workshop, done: Outcome, evaluated: Mapping[str, Any]) -> list[str]:
    """Return what makes the verdict doubtful, in words."""
    found = [MEMORY.format(shop.shared)] if shop.shared else []
    found += ["one seed: nothing tells what another order of rows would change"] * (
        len(done.seeds) == 1
    )
    stamps = [shop.stamps(unit)[0] for unit in done.units if unit.seed is not None]
    found += [line for stamp in stamps for line in stamp.result.get("advice", ())]
    for counts in evaluated["dropped"].values():
        found += Losses(dropped=counts).lines(0)
    return list(dict.fromkeys([*found, *evaluated["warnings"]]))


def tell_untyped(results: Results) -> list[str]:
    """Say how many rows have no question type where others have."""
    count = sum(results.rows[at].kind is None for at in results.places)
    if not results.kinds or not count:
        return []
    verb = "has" if count == 1 else "have"
    return [f"{units.plural(count, 'row')} {verb} no type: no question type's scores tell of them"]


def _differences(results: Results, done: Outcome) -> list[Differences]:
    if done.judged is None or "control" not in results.answers:
        return []
    return count_differences(results, done.judged, done.seeds)


def _logs(shop: Workshop, done: Outcome) -> Iterator[tuple[int, Log]]:
    for unit in done.units:
        if unit.seed is not None:
            yield shop.plan(unit).training[-1].trained_parameters, shop.log(unit)


def check_fairness(shop: Workshop, done: Outcome) -> None:
    """Raise VerificationError unless all arms of a seed saw the same batches in the same order.

    They are known by their rows and by the tokens that carry loss. Where a connector appends image
    tokens, longer rows may be cut sooner: there only rows count.
    """
    for seed in done.seeds:
        seen: dict[str, list[tuple[Any, ...]]] = {}
        units = [unit for unit in done.units if unit.seed == seed]
        plain = not any(shop.plan(unit).layout.changes_tokens for unit in units)
        for unit in units:
            log = shop.log(unit)
            seen[unit.name] = [(row["rows"], plain and row["supervised_tokens"]) for row in log]
        first = units[0].name
        for name, batches in seen.items():
            if batches != seen[first]:
                raise VerificationError(
                    f"{name} was trained on other batches than {first}",
                    hint="did the data change? Remove the work folder, or choose another",
                )


def rows_of_test(asked: Asked) -> dict[int, Row]:
    """Return the rows of the test that can be read, by place."""
    return {at: row for at, row in enumerate(asked.read_test()) if not isinstance(row, BadRow)}


def _settings(asked: Asked) -> dict[str, Any]:
    settings = asdict(asked.settings)
    names = ("limit", "max_new_tokens", "eval_batch", "dtype", "split", "test_split")
    return settings | {name: getattr(asked, name) for name in names}


def _probed(report: ProbeReport | None) -> Probed | None:
    if report is None:
        return None
    return Probed(
        verdict=report.verdict,
        operate=report.recommended.operate,
        layers=report.recommended.layers,
        expected=report.expected,
        seconds=report.seconds,
    )


def _arm(shop: Workshop, arm: Arm, units: Sequence[Unit], results: Results) -> TrialArm:
    plan = arm.plan
    layout = None if plan is None else plan.layout
    trained = 0 if plan is None else shop.plan(units[0]).training[-1].trained_parameters
    return TrialArm(
        name=arm.name,
        title=TITLES[arm.name],
        connector=None if plan is None else plan.kind,
        blocks=[list(block.layers) for block in layout.blocks] if layout else [],
        variant=(layout.mixed, layout.normed, layout.pool) if layout else (False, False, 1),
        new_parameters=0 if plan is None else plan.new_parameters,
        trained_parameters=trained,
        runs=[_run(shop, unit) for unit in units],
        **results.scores(arm.name),
    )


def _run(shop: Workshop, unit: Unit) -> TrialRun:
    stamps = shop.stamps(unit)
    evals = [stamp for stamp in stamps if "eval" in stamp.result]
    score, loss = (evals[at].result["eval"]["models"][0]["score"]["mean"] for at in (0, -1))
    found: dict[str, Any] = {
        "folder": str(shop.folder(unit)),
        "eval_seconds": round(sum(stamp.seconds for stamp in evals), 2),
        "score": score,
        "loss": loss,
    }
    if unit.seed is None:
        return TrialRun(seed=None, **found)
    plan = shop.plan(unit)
    training = plan.training[-1]
    return TrialRun(
        seed=unit.seed,
        steps=training.steps,
        first_loss=training.first_loss,
        last_loss=training.last_loss,
        # Of the log, which a training that was resumed has whole.
        seconds=round(sum(row["seconds"] for row in shop.log(unit)), 2),
        peak_memory=stamps[0].result["peak_memory"],
        weights={item.name: item.sha256 for item in plan.delta if item.sha256},
        **found,
    )
