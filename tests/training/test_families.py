"""Every family of the support table trains: its loss falls, and only what is announced changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dcsurgery.architectures import available
from tests.architectures import cases
from tests.training.tasks import changed, make_rows, run, snapshot

pytestmark = pytest.mark.slow


def test_every_family_is_tried(families: dict[str, cases.Case]) -> None:
    assert set(families) == {architecture.name for architecture in available()}


@pytest.mark.parametrize("name", [architecture.name for architecture in available()])
def test_its_loss_falls_and_only_what_is_announced_changes(
    families: dict[str, Any], tmp_path: Path, name: str
) -> None:
    case = families[name]
    model = case.attached()
    before = snapshot(model)
    rows = make_rows(case.tiny, model, 2)
    values = {"batch_size": 2, "warmup": 0.0, "projector_lr": 1e-3, "max_steps": 4}
    result = run(case, model, rows, tmp_path, **values)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < losses[0]
    assert changed(before, model) == set(result.trained.names)
    assert set(result.trained.groups) == {"connector", "projector"}
