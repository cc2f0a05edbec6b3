"""Planted signals: the probe finds the states that carry one, and says no where none does."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dcsurgery.features import FeatureBlock
from tests.probing.toy import FEATURE, WIDTH, Toy, make_rows, noise, planted, probe_toy

pytestmark = pytest.mark.slow


def redundant(draw: torch.Generator, label: int) -> Tensor:
    """State 2 is state 1 once more, but for a hundredth."""
    found = planted([1], draw, label)
    found[:, 2] = found[:, 1] + 0.01 * torch.randn(found[:, 1].shape, generator=draw)
    return found


def halves(draw: torch.Generator, label: int) -> Tensor:
    """State 1 tells class 0 from the others, state 3 class 1."""
    found = noise(draw, label)
    found[:, 1, 0] += 2.0 * (label == 0)
    found[:, 3, 1] += 2.0 * (label == 1)
    return found


def held(draw: torch.Generator, label: int) -> Tensor:
    """The feature carries the signal, and state 1 is the feature turned and scaled."""
    found = planted([FEATURE], draw, label)
    turn = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    found[:, 1] = found[:, FEATURE] @ turn + 3.0
    return found


@pytest.mark.parametrize("state", [0, 2, 5])
def test_the_state_that_carries_it_is_found(state: int) -> None:
    found = probe_toy(make_rows(partial(planted, [state])))
    assert found.report["recommended"].layers == str(state)
    assert found.report["expected"].low > found.report["null"].floor
    best = max(found.candidates.new, key=found.gain)
    assert best == state
    assert [item.state for item in found.report["states"] if item.evidence] == [state]


@pytest.mark.parametrize("seed", range(6))
def test_it_says_no_where_no_state_carries_anything(seed: int) -> None:
    report = probe_toy(make_rows(noise, seed=seed)).report
    assert not report["recommended"].operate
    assert report["recommended"].layers is None
    assert report["verdict"].startswith("do not operate: today's feature already holds it")
    assert not any(item.evidence for item in report["states"])


def test_of_two_redundant_states_one_is_chosen() -> None:
    found = probe_toy(make_rows(redundant))
    assert found.report["recommended"].layers in ("1", "2")
    together = found.gains.rows([found.candidates.place(1), found.candidates.place(2)])
    one = max(found.gain(1), found.gain(2))
    assert found.gains.mean(together) < 1.05 * one


def test_two_states_that_carry_different_things_are_both_chosen() -> None:
    assert probe_toy(make_rows(halves, count=320)).report["recommended"].layers == "1;3"


def test_what_the_feature_says_already_is_no_reason() -> None:
    found = probe_toy(make_rows(held))
    assert not found.report["recommended"].operate
    new = probe_toy(make_rows(partial(planted, [1])))
    assert abs(found.gain(1)) < 0.02 * new.gain(1)


def test_a_difference_from_the_feature_that_hardly_varies_is_not_blown_up() -> None:
    """Without damping relative to the state itself, its scale would not matter at all."""

    def nearly(size: float, draw: torch.Generator, label: int) -> Tensor:
        found = planted([1], draw, label)
        found[:, 3] = found[:, FEATURE] + size * found[:, 1]
        return found

    clear, faint = (probe_toy(make_rows(partial(nearly, size))) for size in (1.0, 1e-4))
    assert clear.gain(3) > 0.5 * clear.gain(1)
    assert faint.gain(3) < 0.01 * faint.gain(1)


def test_a_connector_that_reads_it_already_leaves_nothing_to_gain() -> None:
    read = (FeatureBlock((2,)),)
    assert not probe_toy(make_rows(partial(planted, [2])), read).report["recommended"].operate
    report = probe_toy(make_rows(partial(planted, [0])), read).report
    # The base is converted anew, with what it reads and what it lacks.
    assert report["recommended"].layers == "2;0"
    assert report["recommended"].blocks == [[2], [0]]


def test_the_expected_gain_is_what_a_step_of_that_kind_takes_off_unseen_rows() -> None:
    """The oracle trains a matrix beside the projector by gradient descent, on other rows."""
    paint = partial(planted, [2])
    found = probe_toy(make_rows(paint, count=400))
    rows = [row.batch() for row in make_rows(paint, count=800, seed=1)]
    pixels = torch.cat([row["pixel_values"] for row in rows])
    labels = torch.cat([row["labels"][:, 1] for row in rows])
    model = Toy().requires_grad_(False)
    matrix = torch.zeros(8, WIDTH, requires_grad=True)

    def losses() -> Tensor:
        first = model.projector(pixels[:, :, FEATURE]) + pixels[:, :, 2] @ matrix.T
        logits = model.head(torch.tanh(first).mean(1))
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    before = float(losses()[400:].detach().mean())
    optimizer = torch.optim.SGD([matrix], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        losses()[:400].mean().backward()
        optimizer.step()
    trained = before - float(losses()[400:].detach().mean())
    # Of second order, far from zero: the right size, not the right number.
    assert 0.3 * trained < found.report["expected"].mean < 3 * trained


def test_question_types_get_their_own_gains() -> None:
    def paint(draw: torch.Generator, label: int) -> Tensor:
        return planted([2], draw, label)

    rows = make_rows(paint, count=240)
    report = probe_toy(rows).report
    assert set(report["expected_by_type"]) == {"odd", "even"}
    assert sum(score.rows for score in report["expected_by_type"].values()) == len(rows)
    weighted = sum(score.mean * score.rows for score in report["expected_by_type"].values())
    assert weighted / len(rows) == pytest.approx(report["expected"].mean)


def test_the_model_is_left_as_it_was() -> None:
    model = Toy().train()
    before = copy.deepcopy(model.state_dict())
    probe_toy(make_rows(noise, count=24), model=model)
    assert model.training and all(value.requires_grad for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(item._forward_hooks or item._forward_pre_hooks for item in model.modules())
