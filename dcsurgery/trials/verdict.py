"""The verdict in one sentence, by rules that were fixed before anything was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dcsurgery.evaluation.trial_report import RETROFITS, Decision, Gain, Versus
from dcsurgery.printing import units

Found = Mapping[str, Versus]
NEEDED = "it needs the control and an arm with new states"


def decide(judged: str | None, versus: Found, metric: str, seeds: int) -> tuple[Decision, str]:
    """Return the decision and its sentence. `versus` compares the judged arm with others by name.

    "do not": surely below control or base, or a question type is lost against the control. "worth
    it": it beats the control, and the repeated feature in the metric or at least in loss (where
    that was tried). "not shown": everything else.
    """
    control = versus.get("control")
    if judged is None or control is None:
        return "no verdict", f"no verdict: {NEEDED}"
    gain, base = control.gain, versus.get("base")
    where = f"({metric}, {units.plural(gain.rows, 'row')}, {units.plural(seeds, 'seed')})"
    said = f"{judged} minus control {write_gain(gain, metric)} {where}"
    if gain.high < 0:
        return "do not", f"do not: it loses: {said}"
    if base is not None and base.gain.high < 0:
        told = write_gain(base.gain, metric)
        return "do not", f"do not: after this training it is below the base, {told} {where}"
    if control.lost:
        return "do not", f"do not: it loses on {', '.join(control.lost)}: {said}"
    repeated = versus.get("repeated")
    as_good = repeated is not None and max(repeated.gain.low, repeated.loss.low) <= 0
    if control.beats and not as_good:
        more = f"{_types(control)}{_size(repeated, metric)}{_loss(control, metric)}"
        return "worth it", f"worth it: {said}{more}"
    size = "; today's feature again, in a matrix of the same size, does as much" * as_good
    return "not shown", f"not shown: {said}{size * control.beats}{_why(control, metric)}"


def no_verdict(names: Sequence[str]) -> str:
    """Say that no verdict can come of arms; nothing where one can."""
    if "control" in names and not {*names}.isdisjoint(RETROFITS):
        return ""
    return f"no verdict will come of these arms: {NEEDED}"


def write_gain(gain: Gain, metric: str) -> str:
    """Return a gain with its interval, in points or nats."""
    if metric == "loss":
        return f"{gain.mean:+.4f} nats per answer token [{gain.low:+.4f}, {gain.high:+.4f}]"
    mean, low, high = (100 * value for value in (gain.mean, gain.low, gain.high))
    return f"{mean:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _types(control: Versus) -> str:
    if not control.by_type:
        return ""
    if control.doubtful:
        return f"; {', '.join(control.doubtful)} may have lost"
    return "; no question type loses"


def _size(repeated: Versus | None, metric: str) -> str:
    """Say by how much it is better than a matrix of the same size over today's feature."""
    if repeated is None:
        return ""
    shown = "" if repeated.gain.low > 0 else ", which shows in the loss alone"
    return f"; over today's feature again {write_gain(repeated.gain, metric)}{shown}"


def _loss(control: Versus, metric: str) -> str:
    loss = control.loss
    if metric == "loss" or loss.high >= 0:
        return ""
    return f"; its loss rises, {write_gain(loss, 'loss')}"


def _why(control: Versus, metric: str) -> str:
    """Say what keeps it from being shown."""
    gain, found = control.gain, []
    if gain.low > 0 and min(gain.seeds) <= 0:
        found.append("the seeds do not agree")
    if control.doubtful:
        found.append(f"{', '.join(control.doubtful)} may have lost")
    loss = control.loss
    if metric != "loss" and loss.low > 0:
        found.append(f"its loss does fall, by {loss.mean:.4f} [{loss.low:.4f}, {loss.high:.4f}] "
                     "nats per answer token: more rows may show it")  # fmt: skip
    return "".join(f"; {text}" for text in found) + _loss(control, metric)
