"""Settings say what they mean: presets of the paper, and words for what cannot be meant."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from dcsurgery.errors import RequestError
from dcsurgery.training.feeding import micro_batches
from dcsurgery.training.order import POOL, EpochOrder
from dcsurgery.training.schedule import Schedule
from dcsurgery.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"stage": 1}, {"train": "projector", "connector_lr": 1e-3, "projector_lr": 1e-3,
                        "batch_size": 256, "warmup": 0.03, "weight_decay": 0.0}),
        ({"stage": 2}, {"train": "full", "lr": 2e-5, "connector_lr": 2e-5, "projector_lr": 2e-5,
                        "batch_size": 128, "group_by_length": True, "train_tower": False}),
        ({"stage": 2, "train": "lora"}, {"lr": 2e-4, "projector_lr": 2e-5, "connector_lr": 2e-5,
                                         "lora_rank": 128, "lora_alpha": 256,
                                         "lora_dropout": 0.05, "batch_size": 128}),
        ({}, {"train": "projector", "prompt": "auto"}),
        # scripts/v1_5/pretrain.sh of the reference: --version plain.
        ({"stage": 1}, {"prompt": "plain"}),
        ({"stage": 1, "prompt": "auto"}, {"prompt": "auto"}),
        ({"stage": 1, "lr": 5e-4}, {"connector_lr": 5e-4, "projector_lr": 5e-4}),
        ({"stage": 1, "connector_lr": 2e-3, "batch_size": 8},
         {"connector_lr": 2e-3, "projector_lr": 1e-3, "batch_size": 8}),
        ({"warmup": 0.1}, {"warmup": 0.1, "average": 0.17}),
    ],
)  # fmt: skip
def test_presets_fill_what_was_left_out(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = TrainingSettings(**given).resolved()
    assert {key: getattr(found, key) for key in wanted} == wanted
    assert found.resolved() == found
    optional = {"stage", "max_steps", "quantize", "grad_checkpointing", "workers", "save_steps",
                "report_to"}  # fmt: skip
    assert {key for key, value in asdict(found).items() if value is None} <= optional


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": -1.0}, "lr -1.0 is out of range: give a number of 0 or more"),
        ({"lr": "fast"}, "lr 'fast' is not a number"),
        ({"lr": float("nan")}, "lr nan is out of range"),
        ({"lr": float("inf")}, "lr inf is out of range"),
        ({"lr": True}, "lr True is not a number"),
        ({"train": "all"}, "train 'all' does not exist: choose connector, projector, lora or full"),
        ({"stage": 3}, "stage 3 does not exist: choose 1 or 2"),
        ({"stage": True}, "stage True does not exist"),
        ({"warmup": 1.5}, "warmup 1.5 is out of range: give a number of 0 or more, less than 1"),
        ({"warmup": 1}, "warmup 1 is out of range"),
        ({"epochs": 0}, "epochs 0 is out of range: give a number of more than 0"),
        ({"batch_size": 2.5}, "batch_size 2.5 is not a whole number"),
        ({"seed": -1}, "seed -1 is out of range: give a whole number of 0 or more"),
        ({"seed": None}, "seed None is not a whole number"),
        ({"train_tower": "yes"}, "train_tower 'yes' is not true or false"),
        ({"report_to": 3}, "report_to 3 is not text"),
        ({"max_bad": "two"}, "max_bad 'two'"),
        ({"max_bad": "101%"}, "max_bad '101%': a percentage from 0 to 100"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        TrainingSettings(**given)
    assert f"{caught.value.message}: {caught.value.hint}".startswith(words)


def test_a_setting_that_there_is_not_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="rate"):
        TrainingSettings(rate=1)  # type: ignore[call-arg]


def test_numbers_become_what_they_are_declared_to_be() -> None:
    found = TrainingSettings(lr="2e-5", epochs=2, batch_size=numpy.int64(4))  # type: ignore[arg-type]
    assert (found.lr, found.epochs, found.batch_size) == (2e-5, 2.0, 4)
    assert [type(value) for value in (found.lr, found.epochs, found.batch_size)] == [
        float,
        float,
        int,
    ]


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.03), (7, 0.5), (10, 0.0)])
def test_the_schedule_is_transformers_cosine(steps: int, warmup: float) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    climb = -(-int(steps * warmup * 1000) // 1000)
    theirs = get_cosine_schedule_with_warmup(optimizer, climb, steps).lr_lambdas[0]
    ours = Schedule(steps, warmup)
    assert [ours(step) for step in range(steps + 1)] == [theirs(s) for s in range(steps + 1)]


def test_no_training_spends_its_last_step_at_a_rate_of_zero() -> None:
    """A climb starts at zero: one step of training would otherwise train nothing."""
    assert Schedule(1, 0.03)(0) == 1.0
    assert [Schedule(2, 0.03)(step) for step in range(2)] == [0.0, 1.0]


def test_every_epoch_has_all_rows_in_an_order_of_its_own() -> None:
    order = EpochOrder(10, seed=3)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    order.set_epoch(0)
    assert list(order) == first != list(EpochOrder(10, seed=4))


def test_grouping_puts_rows_of_like_length_into_one_batch_and_text_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 1000, (403,), generator=draw).tolist()
    lengths = [-n if row % 4 == 0 else n for row, n in enumerate(lengths)]
    order = list(EpochOrder(403, 0, lengths, 4))
    assert sorted(order) == list(range(403))
    batches = [[lengths[row] for row in order[i : i + 4]] for i in range(0, 400, 4)]
    spread = [max(batch) - min(batch) for batch in batches]
    # Sorted within a pool of 200 rows: neighbours are a few dozen tokens apart.
    assert sorted(spread)[len(spread) // 2] < 60 and POOL == 50
    mixed = [batch for batch in batches if min(batch) < 0 < max(batch)]
    assert len(mixed) <= 3
    # Neither long rows first nor last: the batches are shuffled.
    middles = [abs(sum(batch)) for batch in batches]
    assert middles != sorted(middles) and middles != sorted(middles, reverse=True)


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "found"),
    [(128, 4, 1, (4, 32)), (6, 4, 1, (3, 2)), (256, 4, 8, (4, 8)), (2, 4, 2, (1, 1))],
)
def test_the_global_batch_is_shared_out(
    batch: int, micro: int, workers: int, found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(workers))
    assert micro_batches(TrainingSettings(batch_size=batch, micro_batch=micro)) == found


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RequestError, match="128 rows cannot be shared by 3") as caught:
        micro_batches(TrainingSettings(batch_size=128))
    assert "multiple of 3" in caught.value.hint
