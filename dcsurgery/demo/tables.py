"""The comparison in words: a table for people, and what moved and what did not."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from dcsurgery.demo.arms import find_arm
from dcsurgery.demo.comparison import GROUPS, Difference, compare, shares
from dcsurgery.demo.outcome import Outcome

SHOWN = ("base", "control", "repeated", "retrofit")


def points(value: float) -> str:
    """Return a difference of shares in percentage points."""
    return f"{100 * value:+.1f}"


def interval(difference: Difference) -> str:
    """Return a difference and its interval in points, with a star where zero lies outside."""
    if isnan(difference.low):
        return f"{points(difference.mean)} (no interval)"
    star = " *" if difference.moved else ""
    return f"{points(difference.mean)} [{points(difference.low)}, {points(difference.high)}]{star}"


def table_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Return one row per question type and group: name, share per arm, retrofit - control."""
    rows = []
    for group in GROUPS:
        means = [f"{100 * shares(outcomes, arm, group).mean():.1f}" for arm in SHOWN]
        rows.append((group, *means, interval(compare(outcomes, "retrofit", "control", group))))
    return rows


def text_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table as lines of at most 80 columns."""
    head = ("questions, % right", *SHOWN, "retrofit - control")
    lines = []
    for row in (head, *table_rows(outcomes)):
        if row[0] == "low level":
            lines.append("")
        name, *means, last = row
        lines.append(f"  {name:18}" + "".join(f"{mean:>9}" for mean in means) + f" {last}")
    return lines


def verdict(outcomes: Sequence[Outcome]) -> list[str]:
    """Return sentences on what the retrofit moved against the control, and what not."""
    kinds = [group for group, members in GROUPS.items() if len(members) == 1]
    found = {kind: compare(outcomes, "retrofit", "control", kind) for kind in kinds}
    better = [kind for kind, item in found.items() if item.low > 0]
    worse = [kind for kind, item in found.items() if item.high < 0]
    still = [kind for kind, item in found.items() if not item.moved]
    lines = []
    for name, names in (("Better", better), ("Worse", worse), ("Not shown to move", still)):
        if names:
            lines.append(f"{name}: {', '.join(names)}.")
    lines += [overall(outcomes, "all"), overall(outcomes, "low level")]
    return lines


def overall(
    outcomes: Sequence[Outcome], group: str, arm: str = "retrofit", other: str = "control"
) -> str:
    """Return one sentence about an arm against another on a group of questions."""
    found = compare(outcomes, arm, other, group)
    what = f"{arm.capitalize()} minus {other}, {group}: {points(found.mean)} points"
    if isnan(found.low):
        return f"{what}; one tower, or all alike, prove nothing."
    above = sum(value > 0 for value in found.towers)
    return (
        f"{what}, 95 % interval {points(found.low)} to {points(found.high)}, "
        f"p = {found.p_value:.2g}; above zero in {above} of {len(found.towers)} towers."
    )


def start_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Return where every arm's validation is lowest on the way, as a mean over towers."""
    lines = []
    for arm in dict.fromkeys(item.arm for item in outcomes if item.steps):
        means = mean_curve(outcomes, arm)
        step = min(means, key=lambda key: means[key])
        lines.append(f"{arm}: {points(means[step])} points at step {step}, {find_arm(arm).title}")
    return lines


def mean_curve(outcomes: Sequence[Outcome], arm: str) -> dict[int, float]:
    """Return an arm's validation minus that of its tower's base, by step, mean over towers."""
    curves = base_curves(outcomes, arm)
    return {step: sum(curve[step] for curve in curves) / len(curves) for step in curves[0]}


def base_curves(outcomes: Sequence[Outcome], arm: str) -> list[dict[int, float]]:
    """Return an arm's validation minus that of the base, by step, for every tower."""
    base = {item.tower: item.curve[0] for item in outcomes if item.arm == "base"}
    return [
        {step: item.curve[step] - base[item.tower] for step in sorted(item.curve)}
        for item in outcomes
        if item.arm == arm
    ]
