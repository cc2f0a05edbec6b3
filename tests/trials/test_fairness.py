"""Arms that did not see the same batches are not compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dcsurgery.errors import VerificationError
from dcsurgery.trials.arms import Arm
from dcsurgery.trials.outcome import Outcome, check_fairness
from dcsurgery.trials.units import Unit

FINE = [(8, 16), (8, 17)]


def check(logs: dict[str, list[tuple[int, int]]], *, appends: bool = False) -> None:
    units = [Unit(Arm(name), 0) for name in logs]
    plan = SimpleNamespace(layout=SimpleNamespace(changes_tokens=appends))
    shop: Any = SimpleNamespace(
        log=lambda unit: [
            {"rows": rows, "supervised_tokens": tokens} for rows, tokens in logs[unit.arm.name]
        ],
        plan=lambda unit: plan,
    )
    check_fairness(shop, Outcome([unit.arm for unit in units], units, {}, None))


def test_the_same_batches_are_fair() -> None:
    check({"control": FINE, "dci": FINE})


@pytest.mark.parametrize("other", [FINE[::-1], FINE[:1], [(8, 16), (7, 17)], [(8, 16), (8, 18)]])
def test_others_are_named(other: list[tuple[int, int]]) -> None:
    with pytest.raises(
        VerificationError, match="dci-0 was trained on other batches than control-0"
    ):
        check({"control": FINE, "dci": other})


def test_longer_rows_may_be_cut_sooner() -> None:
    check({"control": FINE, "chosen": [(8, 16), (8, 12)]}, appends=True)
    with pytest.raises(VerificationError):
        check({"control": FINE, "chosen": [(8, 16), (7, 12)]}, appends=True)
