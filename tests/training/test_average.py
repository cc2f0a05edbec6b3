"""What a training leaves behind is the running average, also when it was stopped on its way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from dcsurgery.connectors.request import Connector
from dcsurgery.training.average import averaged
from dcsurgery.training.settings import TrainingSettings
from tests.architectures.cases import Case, make_case
from tests.architectures.families import contract
from tests.training.tasks import Rows, make_rows, run, snapshot

VALUES: dict[str, Any] = {"max_steps": 6, "average": 0.5, "projector_lr": 1e-2}


class Watch(TrainerCallback):
    """Keeps the trained weights of every step, raw and averaged."""

    def __init__(self) -> None:
        self.raw: list[dict[str, Tensor]] = []
        self.mean: list[dict[str, Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.raw.append(snapshot(kwargs["model"]))
        with averaged(kwargs["model"]):
            self.mean.append(snapshot(kwargs["model"]))
        now = snapshot(kwargs["model"])
        assert all(torch.equal(now[name], value) for name, value in self.raw[-1].items())


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("average") / "model"
    return make_case(contract("llava.TestClip").tiny(folder, 1), Connector("dci"))


@pytest.fixture(scope="module")
def rows(case: Case) -> Rows:
    return make_rows(case.tiny, case.plain(), 12)


def test_the_average_is_that_of_the_weights_and_is_what_stays(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    model, watch = case.attached(), Watch()
    mean = snapshot(model)
    result = run(case, model, rows, tmp_path, callbacks=[watch], **VALUES)
    for raw, seen in zip(watch.raw, watch.mean, strict=True):
        # A lag of half of six steps: a third of the way in each.
        mean = {name: value + (raw[name] - value) / 3 for name, value in mean.items()}
        for name in mean:
            torch.testing.assert_close(seen[name], mean[name])
    for name, value in snapshot(model).items():
        torch.testing.assert_close(value, mean[name])
        if name in result.trained.names:
            assert not torch.equal(value, watch.raw[-1][name])


def test_without_one_the_last_weights_stay(case: Case, rows: Rows, tmp_path: Path) -> None:
    model, watch = case.attached(), Watch()
    run(case, model, rows, tmp_path, callbacks=[watch], **{**VALUES, "average": 0.0})
    now = snapshot(model)
    assert all(torch.equal(now[name], value) for name, value in watch.raw[-1].items())


def test_the_average_survives_a_stop(case: Case, rows: Rows, tmp_path: Path) -> None:
    whole, cut = case.attached(), case.attached()
    run(case, whole, rows, tmp_path / "whole", **VALUES)

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(case, case.attached(), rows, tmp_path / "cut", watch=interrupt, **VALUES)
    assert run(case, cut, rows, tmp_path / "cut", resume=True, **VALUES).resumed_at in (3, 4)
    expected = snapshot(whole)
    assert all(torch.equal(value, expected[name]) for name, value in snapshot(cut).items())


def test_a_finished_training_gives_the_average_again(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    first, again = case.attached(), case.attached()
    run(case, first, rows, tmp_path, save_steps=6, **VALUES)
    result = run(case, again, rows, tmp_path, resume=True, save_steps=6, **VALUES)
    assert result.resumed_at == 6
    expected = snapshot(first)
    assert all(torch.equal(value, expected[name]) for name, value in snapshot(again).items())


def test_connector_and_projector_are_averaged_a_language_model_is_not() -> None:
    lags = {
        train: TrainingSettings(train=train).resolved().average
        for train in ("connector", "projector", "lora", "full")
    }
    assert lags == {"connector": 0.17, "projector": 0.17, "lora": 0.0, "full": 0.0}
    assert TrainingSettings(train="full", average=0.1).resolved().average == 0.1
    assert TrainingSettings(stage=1).resolved().average == 0.0
    warmups = [TrainingSettings(stage=s).resolved().warmup for s in (None, 1)]
    assert warmups == [0.3, 0.03]
