"""A training does what was announced, can be stopped and resumed, and says why it cannot go on."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from dcsurgery.connectors.request import Connector
from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.training.checkpoints import latest_checkpoint
from dcsurgery.training.logs import draw, read_log
from dcsurgery.training.trainer import train
from tests.architectures.cases import Case, make_case
from tests.architectures.families import contract
from tests.training.tasks import (
    Rows,
    changed,
    collate,
    make_rows,
    run,
    settings,
    snapshot,
)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("training") / "model"
    return make_case(contract("llava.TestClip").tiny(folder, 1), Connector("dci"))


@pytest.fixture(scope="module")
def rows(case: Case) -> Rows:
    return make_rows(case.tiny, case.plain(), 12)


@pytest.mark.parametrize("kind", ["connector", "projector", "full", "lora"])
def test_the_loss_falls_and_only_what_was_announced_changes(
    case: Case, rows: Rows, tmp_path: Path, kind: str
) -> None:
    model = case.attached()
    before = snapshot(model)
    rates = {"lr": 1e-3, "projector_lr": 1e-3, "lora_rank": 4, "lora_alpha": 8}
    result = run(case, model, rows, tmp_path, train=kind, max_steps=9, **rates)
    # Three steps an epoch: the same rows at the beginning and at the end.
    losses = [row["loss"] for row in result.history]
    assert sum(losses[6:]) < sum(losses[:3])
    assert changed(before, model) == set(result.trained.names)
    assert result.steps == 9 and result.epochs == 3.0 and not model.training
    assert (result.first_loss, result.last_loss) == (losses[0], losses[-1])


def test_it_starts_from_the_loss_of_the_base(case: Case, rows: Rows, tmp_path: Path) -> None:
    result = run(case, case.attached(), rows, tmp_path, batch_size=12, max_steps=1)
    with torch.no_grad():
        own = case.plain()(**collate(rows.rows)).loss
    assert result.first_loss == pytest.approx(own.item(), rel=1e-5)


def test_micro_batches_do_not_change_the_curve(case: Case, rows: Rows, tmp_path: Path) -> None:
    """Also where rows have unequally many supervised words: the mean is over the global batch."""
    uneven = Rows([dict(row) for row in rows.rows])
    for index, row in enumerate(uneven.rows):
        row["labels"] = row["labels"].clone()
        row["labels"][:, : -1 - index % 3] = -100
    curves = [
        [row["loss"] for row in run(case, case.attached(), uneven, tmp_path / str(size),
                                    micro_batch=size, max_steps=6).history]
        for size in (4, 1)
    ]  # fmt: skip
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_checkpointed_activations_do_not_change_the_curve(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    curves = [
        [row["loss"] for row in run(case, case.attached(), rows, tmp_path / str(on), train="full",
                                    train_tower=True, grad_checkpointing=on).history]
        for on in (False, True)
    ]  # fmt: skip
    assert curves[0] == curves[1]


def test_groups_have_their_own_rates(case: Case, rows: Rows, tmp_path: Path) -> None:
    values = {"projector_lr": 2.5e-3, "warmup": 0.0, "max_steps": 4}
    history = run(case, case.attached(), rows, tmp_path, **values).history
    assert history[0]["lr connector"] == 1e-2 > history[1]["lr connector"] > 0
    assert all(row["lr projector"] == row["lr connector"] / 4 for row in history)


def test_a_connector_with_a_rate_of_zero_has_no_part_in_a_training(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    """The same as a matrix whose gradient is dropped before anything looks at it."""
    alone, held = case.attached(), case.attached()
    held.dense_connector.weight.register_hook(torch.zeros_like)
    options: dict[str, Any] = {"train": "projector", "projector_lr": 1e-2, "max_grad_norm": 1e-3}
    found = run(case, alone, rows, tmp_path / "a", connector_lr=0.0, **options)
    run(case, held, rows, tmp_path / "b", **options)
    assert "connector" not in found.trained.groups and found.untouched == ()
    assert not alone.dense_connector.weight.any()
    assert changed(snapshot(held), alone) == set()
    assert changed(snapshot(case.attached()), alone) == set(found.trained.names)


def test_a_rate_of_zero_for_all_that_is_trained_is_refused(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="trains nothing"):
        run(case, case.attached(), rows, tmp_path, train="connector", connector_lr=0.0)


def test_a_stopped_training_resumes_to_the_same_bits(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    """SIGINT in the middle of an epoch, with dropout, accumulation and the tower in training."""
    values: dict[str, Any] = {
        "train": "lora", "train_tower": True, "lora_rank": 2, "lora_dropout": 0.2,
        "micro_batch": 2, "max_steps": 7, "lr": 1e-3, "projector_lr": 1e-3, "save_steps": 3,
    }  # fmt: skip
    whole = case.attached()
    expected = run(case, whole, rows, tmp_path / "whole", **values)

    def interrupt(row: dict[str, Any]) -> None:
        if row["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(case, case.attached(), rows, tmp_path / "cut", watch=interrupt, **values)
    checkpoint = latest_checkpoint(tmp_path / "cut")
    assert checkpoint is not None and checkpoint.name == "checkpoint-5"
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size < 20 * expected.trained.count + 60_000, "a checkpoint holds what is trained alone"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model = case.attached()
    result = run(case, model, rows, tmp_path / "cut", resume=True, **values)
    assert result.resumed_at == 5 and result.steps == 7
    timeless = [
        [{k: v for k, v in row.items() if "second" not in k} for row in history]
        for history in (expected.history, result.history, read_log(result.log))
    ]
    assert timeless[0] == timeless[1] == timeless[2]
    pairs = zip(whole.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    # Once more: it is done, nothing is left to train.
    again = case.attached()
    assert run(case, again, rows, tmp_path / "cut", resume=True, **values).steps == 7
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True)
    )


def test_a_terminated_training_saves_and_leaves_with_143(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    def terminate(row: dict[str, Any]) -> None:
        if row["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        run(case, case.attached(), rows, tmp_path, watch=terminate)
    assert caught.value.code == 143
    assert latest_checkpoint(tmp_path) is not None


def test_another_training_is_not_resumed(case: Case, rows: Rows, tmp_path: Path) -> None:
    run(case, case.attached(), rows, tmp_path, save_steps=2)
    with pytest.raises(RequestError, match=r"another training: connector_lr was 0.01, is 0.02"):
        run(case, case.attached(), rows, tmp_path, resume=True, save_steps=2, connector_lr=2e-2)
    # How often it saves, and how it fits into memory, may change.
    run(case, case.attached(), rows, tmp_path, resume=True, save_steps=1, micro_batch=1)


def test_an_unfinished_checkpoint_does_not_count(case: Case, rows: Rows, tmp_path: Path) -> None:
    run(case, case.attached(), rows, tmp_path, save_steps=1)
    assert sorted(path.name for path in tmp_path.glob("*-*")) == ["checkpoint-3", "checkpoint-4"]
    (tmp_path / "checkpoint-4" / "complete.json").unlink()
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "checkpoint-3"
    assert run(case, case.attached(), rows, tmp_path, resume=True).resumed_at == 3


def test_a_loss_that_is_no_number_stops_and_names_the_rows(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    broken = Rows([dict(row) for row in rows.rows])
    broken.rows[5]["pixel_values"] = broken.rows[5]["pixel_values"] * math.inf
    with pytest.raises(TrainingError, match=r"loss became nan at step \d, with rows") as caught:
        run(case, case.attached(), broken, tmp_path, micro_batch=2, save_steps=1)
    assert "row-5" in caught.value.message and caught.value.message.count("row-") == 2


def test_gradients_that_are_no_numbers_stop_before_a_checkpoint(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    model = case.attached()
    model.dense_connector.weight.register_hook(lambda slope: slope * math.inf)
    with pytest.raises(TrainingError, match="gradients became infinite at step") as caught:
        run(case, model, rows, tmp_path, save_steps=1)
    assert caught.value.message.count("row-") == 4 and latest_checkpoint(tmp_path) is None


def test_a_base_in_bf16_stays_so_while_new_weights_are_fp32(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    model = case.attached(dtype=torch.bfloat16)
    before = snapshot(model)
    result = run(case, model, rows, tmp_path / "low", projector_lr=1e-3, max_steps=9)
    assert changed(before, model) == set(result.trained.names)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    parameters = dict(model.named_parameters())
    assert {parameters[name].dtype for name in result.trained.names} == {torch.float32}
    assert parameters["lm_head.weight"].dtype == torch.bfloat16
    assert "forward" not in vars(model), "the wrapper of mixed precision is gone"
    # Another precision in the same process.
    run(case, case.attached(), rows, tmp_path / "full", max_steps=1)


@pytest.mark.parametrize(
    ("dtype", "precision", "words"),
    [
        (torch.float32, "fp16", "fp16 needs a GPU"),
        (torch.bfloat16, "fp32", "loaded in bf16 and is to be trained in fp32"),
    ],
)
def test_a_precision_that_does_not_fit_is_refused(
    case: Case, rows: Rows, tmp_path: Path, dtype: torch.dtype, precision: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        run(case, case.attached(dtype=dtype), rows, tmp_path, precision=precision)


def test_a_stream_is_read_for_the_steps_that_are_asked_for(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    class Stream(IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            return iter(rows.rows[:6])

    def go(**values: Any) -> Any:
        given = settings(**values)
        return train(case.attached(), case.plan, Stream(), collate, given, output_dir=tmp_path)

    # At its end it is begun again, within the batch.
    history = go(max_steps=3, micro_batch=2).history
    assert [row["rows"] for row in history] == [4, 4, 4]
    assert [row["epoch"] for row in history] == pytest.approx([1 / 3, 2 / 3, 1])
    with pytest.raises(RequestError, match="no length") as caught:
        go(max_steps=None)
    assert "--max-steps" in caught.value.hint


def test_a_quantised_base_trains_what_is_put_beside_it(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    """transformers takes such a model for training with adapters alone."""
    model = case.attached()
    model.is_quantized, model.hf_quantizer = True, SimpleNamespace(is_trainable=True)
    result = run(case, model, rows, tmp_path, max_steps=2)
    assert result.steps == 2 and not model._hf_peft_config_loaded


@pytest.mark.parametrize("name", ["nowhere", "dvclive"])
def test_a_place_to_report_to_that_is_not_here_is_refused_first(
    case: Case, rows: Rows, tmp_path: Path, name: str
) -> None:
    with pytest.raises(RequestError, match=f"{name} is not installed, or unknown"):
        run(case, case.attached(), rows, tmp_path / "new", report_to=name)
    assert not (tmp_path / "new").exists()


def test_no_rows_are_no_training(case: Case, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no rows"):
        run(case, case.attached(), Rows([]), tmp_path, max_steps=None)


def test_the_log_says_which_layers_the_new_matrix_uses(
    case: Case, rows: Rows, tmp_path: Path
) -> None:
    model = case.attached()
    result = run(case, model, rows, tmp_path)
    last = read_log(tmp_path / "training.jsonl")[-1]
    left, right = model.dense_connector.weight.detach().split(16, dim=1)
    # The norms of a step are those after it.
    assert last["norm of 0, 1"] == pytest.approx(left.norm().item())
    assert last["norm of 2, 3"] == pytest.approx(right.norm().item())
    assert (last["rows"], last["supervised_tokens"], last["step"]) == (4, 12, 4)
    draw(result.history, case.plan, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
