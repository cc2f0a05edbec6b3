"""Connectors with more to learn than one matrix: mix and sci with norms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dcsurgery
from dcsurgery.connectors.attach import attach, detach
from dcsurgery.connectors.folding import learned_shares
from dcsurgery.errors import RequestError
from tests.architectures.cases import load
from tests.architectures.inputs import llava_inputs
from tests.closeness import SAME, assert_near
from tests.surgery import random_matrix, write_delta, write_folded


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**llava_inputs(model, 2, 1)).logits
    return found


def draw(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_mix_starts_as_dci(tiny_clip: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(tiny_clip, tmp_path / "mix", connector="mix").plan
    matrix = random_matrix(plan)
    write_delta(tiny_clip, tmp_path / "dci", matrix)
    states = sum(map(len, plan.layout.groups))
    write_delta(
        tiny_clip, tmp_path / "d", {"weight": matrix, "mix": torch.zeros(states)}, connector="mix"
    )
    dci, mix = dcsurgery.load(tmp_path / "dci"), dcsurgery.load(tmp_path / "d")
    assert_near(logits(mix), logits(dci))
    assert not torch.equal(logits(mix), logits(load(tiny_clip)))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_learned_weights_fold(tiny_siglip: Path, tmp_path: Path, groups: int) -> None:
    options = {"connector": "mix", "groups": groups}
    plan = dcsurgery.convert(tiny_siglip, tmp_path / "zero", **options).plan
    assert plan.form == "stock"
    matrix, mix = random_matrix(plan), draw(sum(map(len, plan.layout.groups)))
    write_delta(tiny_siglip, tmp_path / "delta", {"weight": matrix, "mix": mix}, **options)
    report = dcsurgery.verify(tmp_path / "delta")
    assert report.passed, report.checks
    branch = logits(dcsurgery.load(tmp_path / "delta"))
    shares = learned_shares(plan.layout, mix.tolist())
    for span, block in zip(plan.layout.spans, shares, strict=True):
        torch.testing.assert_close(torch.tensor(block), mix[span].softmax(0))
    write_folded(tiny_siglip, tmp_path / "stock", matrix, shares, **options)
    assert_near(logits(load(tmp_path / "stock")), branch)
    if groups < 3:
        write_folded(tiny_siglip, tmp_path / "means", matrix, None, **options)
        assert (logits(load(tmp_path / "means")) - branch).abs().max() > 1e-3


def test_gradients_reach_the_weights_of_mix(tiny_clip: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(tiny_clip, tmp_path / "zero", connector="mix").plan
    model = load(tiny_clip).requires_grad_(False)
    connector = attach(model, plan.anatomy, plan.layout, tensors={"weight": random_matrix(plan)})
    assert connector.mix is not None and connector.mix.dtype == torch.float32
    model(**llava_inputs(model, 1, 1)).logits.square().mean().backward()
    grad = connector.mix.grad
    assert grad is not None and (grad.abs() > 0).all()
    # Softmax only moves weight between states: a group's gradients add up to nothing.
    for span in plan.layout.spans:
        assert grad[span].sum().abs() <= SAME * grad[span].abs().max()


def test_norm_starts_exact_and_is_a_layer_norm(tiny_clip: Path, tmp_path: Path) -> None:
    options = {"connector": "sci", "layers": "1,3", "norm": True}
    plan = dcsurgery.convert(tiny_clip, tmp_path / "zero", **options).plan
    assert plan.form == "delta"
    names = {record.name: (record.dtype, record.shape) for record in plan.delta}
    assert names["dense_connector.norm_weight"] == ("F32", [2, 16])
    base = load(tiny_clip)
    assert torch.equal(logits(dcsurgery.load(tmp_path / "zero")), logits(base))
    tensors = {"weight": random_matrix(plan), "norm_weight": draw(2, 16), "norm_bias": draw(2, 16)}
    write_delta(tiny_clip, tmp_path / "out", tensors, **options)
    report = dcsurgery.verify(tmp_path / "out", logits=True)
    assert report.passed, report.checks
    found = logits(dcsurgery.load(tmp_path / "out"))
    pixels = llava_inputs(base, 2, 1)["pixel_values"]
    norms = [nn.LayerNorm(16), nn.LayerNorm(16)]
    with torch.no_grad():
        states = base.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        for index, norm in enumerate(norms):
            norm.weight.copy_(tensors["norm_weight"][index])
            norm.bias.copy_(tensors["norm_bias"][index])
        rows = [norm(states[layer])[:, 1:] for norm, layer in zip(norms, (1, 3), strict=True)]
        added = torch.cat(rows, dim=-1) @ tensors["weight"].T
    site = base.model.multi_modal_projector.linear_1
    handle = site.register_forward_hook(lambda module, args, output: output + added)
    expected = logits(base)
    handle.remove()
    assert_near(found, expected)


def test_detach_gives_the_base_back(tiny_clip: Path, tmp_path: Path) -> None:
    plan = dcsurgery.convert(tiny_clip, tmp_path / "zero").plan
    model, base = load(tiny_clip), load(tiny_clip)
    with pytest.raises(RequestError, match="no dense connector"):
        detach(model)
    attach(model, plan.anatomy, plan.layout, tensors={"weight": random_matrix(plan)})
    assert not torch.equal(logits(model), logits(base))
    detach(model)
    assert torch.equal(logits(model), logits(base))
    assert model.state_dict().keys() == base.state_dict().keys()
    model.save_pretrained(tmp_path / "saved")
    attach(model, plan.anatomy, plan.layout)
    assert torch.equal(logits(model), logits(base))
