"""In every family, error times state is the loss gradient of the new matrix: finite differences."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dcsurgery.architectures import available
from dcsurgery.connectors.attach import attach
from dcsurgery.features import FeatureBlock, FeatureLayout
from dcsurgery.probing.listen import Listener, RowReading, listening
from dcsurgery.training.loss import SupervisedHead, supervised_loss
from tests.architectures.cases import Case
from tests.closeness import assert_near
from tests.training.tasks import make_rows

pytestmark = pytest.mark.slow

# By how much the losses that are compared differ, in nats: fp32 knows them to about 1e-6.
CHANGE = 0.05
FINITE = 5e-3


def blocks_of(case: Case) -> tuple[FeatureBlock, ...]:
    """The shallowest state, a deep one, and a mean."""
    first, depth = case.anatomy.first_state, case.anatomy.tower.depth
    wanted = ((first,), (depth,), tuple(range(first, depth + 1)))
    return tuple(map(FeatureBlock, dict.fromkeys(wanted)))


def heard(
    case: Case, model: Any, batch: Mapping[str, Tensor], precision: str = "fp32"
) -> RowReading:
    listener = Listener(case.anatomy, blocks_of(case), case.architecture.arrange)
    with listening(model, listener, precision) as reader:
        return reader.read(batch)


def of_matrix(reading: RowReading) -> Tensor:
    """The gradient of D [rows of all sites, blocks * width]."""
    return torch.cat([site.error.T @ site.states.flatten(1) for site in reading.sites])


def loss_at(case: Case, model: Any, matrix: Tensor, batch: Mapping[str, Tensor]) -> float:
    """The row's summed loss with this D, through the connector that users get."""
    layout = FeatureLayout("probe", blocks_of(case))
    moved = copy.deepcopy(model)
    attach(moved, case.anatomy, layout, case.architecture.arrange, {"weight": matrix})
    head = SupervisedHead(moved)
    with torch.no_grad():
        return float(supervised_loss(moved, head, batch))


@pytest.mark.parametrize("name", [architecture.name for architecture in available()])
def test_the_loss_moves_as_the_gradient_says(families: dict[str, Case], name: str) -> None:
    case = families[name]
    model = case.plain()
    batch = make_rows(case.tiny, model, 1)[0]
    reading = heard(case, model, batch)
    gradient = of_matrix(reading)
    # A copy's weights lie elsewhere in memory, which can move the last bit of a product.
    still = loss_at(case, model, torch.zeros_like(gradient), batch)
    assert reading.loss == pytest.approx(still, rel=1e-6)
    norm = float(gradient.norm())
    slopes = []
    for step in (CHANGE / norm, CHANGE / norm / 2):
        ahead, behind = (
            loss_at(case, model, sign * step / norm * gradient, batch) for sign in (1, -1)
        )
        slopes.append((ahead - behind) / (2 * step))
    # Richardson: the error of third order drops out.
    found = (4 * slopes[1] - slopes[0]) / 3
    assert_near(torch.tensor(found), torch.tensor(norm), FINITE, name)


@pytest.mark.parametrize(("precision", "relative"), [("bf16", 0.05), ("fp16", 0.01)])
def test_fewer_bits_hear_the_same_error(
    families: dict[str, Case],
    precision: str,
    relative: float,
) -> None:
    case = families["llava"]
    model = case.plain()
    batch = make_rows(case.tiny, model, 1)[0]
    wanted = heard(case, model, batch)
    found = heard(case, model, batch, precision)
    assert_near(found.sites[0].error, wanted.sites[0].error, relative)
    assert_near(found.sites[0].states, wanted.sites[0].states, relative)
    assert found.loss == pytest.approx(wanted.loss, rel=relative)
