"""Every family of the support table trains: its loss falls, and only what is announced changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dcsurgery.architectures import available
from dcsurgery.training import start
from dcsurgery.training.feeding import Feed
from dcsurgery.training.freeze import language_path
from dcsurgery.training.loss import SupervisedHead, supervised_loss
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trainer import prepare
from tests.architectures import cases
from tests.closeness import PAPER, assert_near
from tests.training.tasks import changed, collate, make_rows, run, snapshot

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [architecture.name for architecture in available()])
def test_few_bits_are_for_the_language_model_alone(
    families: dict[str, cases.Case], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers itself says which layers it would convert."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    monkeypatch.setattr(start, "find_spec", lambda package: True)
    case = families[name]
    model = case.attached()
    options = start.load_options(TrainingSettings(quantize="4bit"), case.plan)
    kept = options["quantization_config"].llm_int8_skip_modules
    inside = language_path(model)
    head = model.get_output_embeddings()
    linear = {
        path: module is not head and path.startswith(f"{inside}.")
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    few = {path for path in linear if should_convert_module(path, kept)}
    assert {path for path, wanted in linear.items() if wanted} <= few
    own = {s.module for s in case.anatomy.projector.sites} | {
        m for m, _ in case.anatomy.tower.paths
    }
    assert not [path for path in few for part in own if f".{part}." in f".{path}."]
    assert not any(model.get_submodule(path) is head for path in few)


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


@pytest.mark.parametrize("name", [architecture.name for architecture in available()])
def test_its_loss_and_gradients_are_the_models_own(families: dict[str, Any], name: str) -> None:
    """The head sees supervised positions alone, and its own code after that stays what it is."""
    case = families[name]
    model = case.attached()
    rows = make_rows(case.tiny, model, 2)
    rows.rows[1]["labels"][:, :-1] = -100
    trained = prepare(model, case.plan, Feed(rows, collate), TrainingSettings().resolved())
    parameters = [dict(model.named_parameters())[name] for name in trained.names]
    batch, head, seen = collate(rows.rows), SupervisedHead(model), []
    watch = model.get_output_embeddings().register_forward_hook(
        lambda head, args, output: seen.append(output.shape[:-1].numel())
    )
    ours = supervised_loss(model, head, batch) / 4
    slopes = torch.autograd.grad(ours, parameters, allow_unused=True)
    head.remove()
    watch.remove()
    assert seen == [4]
    own = model(**batch).loss
    assert_near(ours, own)
    wanted = torch.autograd.grad(own, parameters, allow_unused=True)
    assert [value is None for value in slopes] == [value is None for value in wanted]
    # Together: a bias of keys has a gradient of rounding errors alone.
    both = [torch.cat([v.flatten() for v in found if v is not None]) for found in (slopes, wanted)]
    assert_near(*both, PAPER)
