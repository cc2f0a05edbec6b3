"""`push --require trial.json`: nothing is published that a trial did not show to be worth it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dcsurgery.errors import PublishError
from dcsurgery.evaluation.trial_report import (
    RETROFITS,
    Gain,
    TrialArm,
    TrialReport,
    Versus,
    read_trial,
)
from dcsurgery.markdown import table
from dcsurgery.publishing.failures import NOTHING
from dcsurgery.publishing.privacy import without_paths
from dcsurgery.surgery.plan_file import DELTA_FOLDER, SurgeryPlan
from dcsurgery.training.settings import FREE

TRIAL_FILE = f"{DELTA_FOLDER}/trial.json"


@dataclass(frozen=True)
class Tried:
    """A trial fit for others' eyes, the arm that the pushed model is, and what differs from it."""

    report: TrialReport
    arm: str
    notes: tuple[str, ...] = ()

    @property
    def versus(self) -> Versus:
        """The arm against the control."""
        found = self.report.versus(self.arm, "control")
        assert found is not None
        return found


def require_trial(path: Path, plan: SurgeryPlan, *, anyway: bool = False) -> Tried:
    """Return a trial of the model that is pushed.

    Raises PublishError for a trial of another base or without this connector, for a model that was
    not trained, and, but for `anyway`, where the arm does not beat its control, loses on a type of
    questions or is surely below the base; RequestError for a file that is no trial. An arm that
    beats its control is let through where the trial says "not shown", which becomes a note.
    """
    report = read_trial(path)
    ours, theirs = ((b.config_sha256, b.files) for b in (plan.base, report.base))
    values = {name: plan.relies_on.get(name) for name in report.projector_sha256}
    if ours != theirs or values != report.projector_sha256:
        raise PublishError(
            f"{path} is the trial of another model, {report.base.id}; {NOTHING}",
            hint=f"try this one's base: dcsurgery trial {shlex.quote(plan.base.id)} --data DATA "
            "--test TEST",
        )
    if not plan.training:
        raise PublishError(
            f"the connector was never trained, and {path} shows trained ones; {NOTHING}",
            hint="push what the trial trained, or a training of your own",
        )
    arm = _arm_of(report, plan)
    if arm is None or report.versus(arm.name, "control") is None:
        names = ", ".join(item.name for item in report.arms)
        why = "without a control" if arm is not None else f"of other connectors ({names})"
        raise PublishError(
            f"{path} is a trial {why}: it does not show what this {plan.kind} is worth; {NOTHING}",
            hint="push an arm that it tried, or make a trial of this one: --layers",
        )
    tried = Tried(public_trial(report), arm.name, tuple(_notes(report, arm, plan)))
    problem = _problem(tried.versus, report)
    if problem is not None and not anyway:
        raise PublishError(
            f"{path}: {arm.name} {problem}; {NOTHING}",
            hint="to publish it all the same, add --require-anyway; the card shows the table",
        )
    return tried


def public_trial(report: TrialReport) -> TrialReport:
    """Return a trial without this machine's folders and without rows of the user's test."""
    values = report.model_dump(mode="json")
    for found in values["differences"]:
        found["examples"] = []
    return TrialReport.model_validate(without_paths(values))


def standing_trial(text: str, plan: SurgeryPlan) -> Tried | None:
    """Return the trial that a repository holds, None where it is not of this model."""
    try:
        report = TrialReport.model_validate_json(text)
    except ValidationError:
        return None
    arm = _arm_of(report, plan)
    if arm is None or report.versus(arm.name, "control") is None:
        return None
    return Tried(report, arm.name, tuple(_notes(report, arm, plan)))


def _arm_of(report: TrialReport, plan: SurgeryPlan) -> TrialArm | None:
    blocks = [list(block.layers) for block in plan.layout.blocks]
    form = (plan.kind, plan.layout.mixed, plan.layout.normed, plan.layout.pool)
    arms = (report.arm(name) for name in RETROFITS)
    return next(
        (a for a in arms if a is not None and (a.connector, *a.variant) == form
         and a.blocks == blocks),
        None,
    )  # fmt: skip


def _problem(versus: Versus, report: TrialReport) -> str | None:
    gain = versus.gain
    span = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] in {report.metric}"
    if versus.lost:
        return f"loses on {', '.join(versus.lost)} against its control ({span})"
    if gain.low <= 0:
        return f"does not beat its control: {span}"
    if not versus.beats:
        return f"does not beat its control with every seed: {span}"
    base = report.versus(versus.arm, "base")
    if base is not None and base.gain.high < 0:
        return f"is below the base after this training, by {-base.gain.mean:.4f} in {report.metric}"
    if report.decision == "do not" and versus.arm == report.judged:
        return f"is advised against: {report.verdict}"
    return None


def _notes(report: TrialReport, arm: TrialArm, plan: SurgeryPlan) -> Iterable[str]:
    """Say what the trial did not show, and what of the pushed model's training it did not try."""
    if report.decision == "not shown" and report.judged == arm.name:
        yield f"the trial's decision about {arm.name} is 'not shown'"
    weights = {item.name: item.sha256 for item in plan.delta}
    if any(run.weights and run.weights == weights for run in arm.runs):
        return
    last = plan.training[-1]
    if len(plan.training) > 1:
        yield f"the trial is of one training, this model has {len(plan.training)}"
    if last.data_sha256 != report.data_sha256:
        yield "the trial trained on other data than this model"
    told = {k: v for k, v in last.settings.items() if k in report.settings and k not in FREE}
    other = [k for k, v in told.items() if k != "seed" and v != report.settings[k]]
    if other:
        yield f"the trial trained with other settings: {', '.join(sorted(other))}"


def write_section(tried: Tried) -> str:
    """Return the card's words about a trial: verdict, arms, and gains by question type."""
    report, versus = tried.report, tried.versus
    lines = [
        f"`dcsurgery trial` trained every arm on the same batches with {len(report.seeds)} seed"
        f"{'s' * (len(report.seeds) > 1)} and asked {report.test} ({report.rows:,} rows, "
        f"{report.pictures:,} pictures). This model is its arm `{tried.arm}`. "
        f"[`{TRIAL_FILE}`]({TRIAL_FILE})",
        f"> {report.verdict}",
    ]
    lines += [f"- {note}" for note in (*tried.notes, *report.warnings)]
    arms = [
        (f"{arm.name}: {arm.title}", f"{arm.score.mean:.4g}", f"{arm.loss.mean:.4g}")
        for arm in report.arms
    ]
    rows = [_row("all", versus.gain, versus.loss)]
    rows += [_row(kind, gain, versus.loss_by_type[kind]) for kind, gain in versus.by_type.items()]
    head = (f"{tried.arm} over control", "rows", report.metric, "p", "loss taken off")
    tables = ["\n".join(table(("arm", report.metric, "loss"), arms)), "\n".join(table(head, rows))]
    return "\n\n".join([*lines, *tables])


def _row(name: str, gain: Gain, loss: Gain) -> tuple[str, ...]:
    spans = [f"{g.mean:+.4g} [{g.low:+.4g}, {g.high:+.4g}]" for g in (gain, loss)]
    return (name, f"{gain.rows:,}", spans[0], f"{gain.p_value:.4g}", spans[1])
