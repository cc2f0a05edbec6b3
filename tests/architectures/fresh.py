"""Checkpoints as transformers' own save_pretrained writes them, and the whole way through ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import dcsurgery
from dcsurgery.architectures import find_architecture
from dcsurgery.connectors.request import Connector
from dcsurgery.tiny.weights import seeded_tensors
from tests.architectures.cases import TinyModel, load, logits, make_case
from tests.architectures.contract import Contract
from tests.architectures.inputs import Inputs
from tests.closeness import SAME, assert_near


def save_fresh(folder: Path, config: Mapping[str, Any], **saving: Any) -> Path:
    """Build a model from a config, give it loud weights, save it; no processor files.

    `saving` are options of save_pretrained.
    """
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    model = model_class(model_class.config_class.from_dict(dict(config)))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    values = seeded_tensors(shapes, seed=3, scale=0.25)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    model.save_pretrained(folder, **saving)
    return folder


def check_whole_way(contract: Contract, folder: Path, inputs: Inputs, out: Path) -> None:
    """Inspect, convert, verify and load a checkpoint; hold its wiring against the contract."""
    tiny = TinyModel(folder, inputs)
    base = load(folder)
    for spec in (Connector("dci"), Connector("sci", layers=((0, 2),))):
        case = make_case(tiny, spec)
        contract.test_anatomy_is_the_loaded_model(case, base)
        contract.test_site_reads_the_feature_layer(case, base)
        contract.test_random_matrix_is_the_formula(case, base)
    offers = dcsurgery.inspect(folder).offers
    assert {offer.kind for offer in offers if offer.refused is None} >= {"dci", "sci", "mix"}
    assert dcsurgery.inspect(folder).anatomy == case.anatomy
    for form in case.architecture.forms:
        dcsurgery.convert(folder, out / form, form=form)
        report = dcsurgery.verify(out / form, logits=form != "portable")
        assert report.passed, report.checks
        model = dcsurgery.load(out / form, dtype=torch.float32)
        exact = SAME if form == "stock" else 0
        assert_near(logits(case, model, 2, 1), logits(case, base, 2, 1), exact)


def check_fresh_model(config: dict[str, Any], work: Path, tiny: TinyModel) -> None:
    """Inspect, convert to every form, verify and load a model made from `config`.

    `tiny` only lends its inputs.
    """
    base = load(save_fresh(work / "base", config))
    vision = config["vision_config"]
    tower = dcsurgery.inspect(work / "base").anatomy.tower
    assert (tower.depth, tower.width) == (vision["num_hidden_layers"], vision["hidden_size"])
    inputs = tiny.inputs(base, 2, 1)
    with torch.no_grad():
        expected = tiny.forward(base, inputs)
    for form in find_architecture(config).forms:
        dcsurgery.convert(work / "base", work / form, form=form)
        report = dcsurgery.verify(work / form, logits=form != "portable")
        assert report.passed, report.checks
        with torch.no_grad():
            found = tiny.forward(dcsurgery.load(work / form, dtype=torch.float32), inputs)
        assert_near(found, expected, SAME if form == "stock" else 0)
