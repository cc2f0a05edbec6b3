"""The loss against torch's own, and a whole training against transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from dcsurgery.connectors.request import Connector
from dcsurgery.training import loss
from dcsurgery.training.loss import SupervisedHead, supervised_loss
from tests.architectures.cases import Case, make_case
from tests.architectures.families import contract
from tests.closeness import assert_near
from tests.training.tasks import collate, make_rows, run, settings


class Fixed(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, **_: Any) -> Any:
        return type("Output", (), {"logits": self.logits * 1.0})


@pytest.mark.parametrize("at_once", [1, 40, 1 << 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_torchs_cross_entropy_with_its_gradient(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "AT_ONCE", at_once)
    torch.manual_seed(0)
    logits = (4 * torch.randn(2, 9, 17)).to(dtype).requires_grad_()
    labels = torch.randint(0, 17, (2, 9))
    labels[0, :5] = -100
    model = Fixed(logits)
    found = supervised_loss(model, SupervisedHead(model), {"labels": labels})
    (slope,) = torch.autograd.grad(found * 0.5, logits)
    exact = logits.detach().double().requires_grad_()
    wanted = functional.cross_entropy(
        exact[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    (right,) = torch.autograd.grad(wanted * 0.5, exact)
    assert found.dtype == torch.float32
    assert_near(found, wanted)
    # A step of the dtype, rounded twice.
    assert_near(slope, right, max(1e-6, 2 * torch.finfo(dtype).eps))


def test_rows_without_an_answer_have_no_loss_and_no_gradient() -> None:
    model = Fixed(torch.randn(1, 4, 5, requires_grad=True))
    labels = torch.full((1, 4), -100)
    found = supervised_loss(model, SupervisedHead(model), {"labels": labels})
    (slope,) = torch.autograd.grad(found, model.logits)
    assert found == 0 and not slope.any()


def test_the_gradient_takes_the_place_of_the_logits() -> None:
    logits = torch.randn(6, 50, requires_grad=True)
    made = logits * 1.0
    found = loss._CrossEntropy.apply(made, torch.arange(6))
    (slope,) = torch.autograd.grad(found, made)
    assert slope.data_ptr() == made.data_ptr()


def test_logits_that_another_gradient_needs_are_not_overwritten_unnoticed() -> None:
    made = torch.randn(6, 50, requires_grad=True).exp()  # its gradient is its value
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss._CrossEntropy.apply(made, torch.arange(6)).backward()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("loss") / "model"
    return make_case(contract("llava.TestClip").tiny(folder, 1), Connector("dci"))


@pytest.mark.parametrize("train", ["projector", "full"])
def test_a_training_has_the_curve_of_transformers_trainer(
    case: Case, tmp_path: Path, train: str
) -> None:
    """With gradient accumulation over rows of unequally many words."""
    from transformers import Trainer, TrainingArguments

    from dcsurgery.training.feeding import Feed
    from dcsurgery.training.schedule import make_optimizer, make_scheduler
    from dcsurgery.training.trainer import prepare

    rows = make_rows(case.tiny, case.plain(), 6)
    for index, row in enumerate(rows.rows):
        row["labels"][:, : -1 - index % 3] = -100
    values = {"batch_size": 6, "micro_batch": 2, "max_steps": 5, "train": train, "average": 0.0}
    ours = run(case, case.attached(), rows, tmp_path / "ours", **values)
    asked = settings(**values).resolved()
    model = case.attached()
    trained = prepare(model, case.plan, Feed(rows, collate), asked)
    optimizer = make_optimizer(model, trained, asked)
    arguments = TrainingArguments(
        str(tmp_path / "theirs"), per_device_train_batch_size=2, gradient_accumulation_steps=3,
        max_steps=5, max_grad_norm=1.0, logging_steps=1, save_strategy="no", report_to="none",
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    engine = Trainer(
        model, arguments, train_dataset=rows, data_collator=collate,
        optimizers=(optimizer, make_scheduler(optimizer, asked, 5)),
    )  # fmt: skip
    engine.train()
    losses = [row["loss"] for row in engine.state.log_history if "loss" in row]
    assert [row["loss"] for row in ours.history] == pytest.approx(losses, rel=1e-5)
