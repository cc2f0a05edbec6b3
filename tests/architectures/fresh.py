"""Checkpoints as transformers' own save_pretrained writes them, and the whole way through ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import dcsurgery
from dcsurgery.plan import ConnectorSpec
from dcsurgery.tiny.weights import seeded_tensors
from tests.architectures.cases import TinyModel, load, logits, make_case
from tests.architectures.contract import Contract
from tests.architectures.inputs import Inputs


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
    for spec in (ConnectorSpec("dci"), ConnectorSpec("sci", layers=((0, 2),))):
        case = make_case(tiny, spec)
        contract.test_anatomy_is_the_loaded_model(case, base)
        contract.test_site_reads_the_feature_layer(case, base)
        contract.test_random_matrix_is_the_formula(case, base)
    offers = dcsurgery.inspect_checkpoint(folder).offers
    assert {offer.kind for offer in offers if offer.refused is None} >= {"dci", "sci", "mix"}
    dcsurgery.convert_checkpoint(folder, out)
    report = dcsurgery.verify_checkpoint(out, logits=True)
    assert report.passed, report.checks
    model = dcsurgery.load_model(out, dtype=torch.float32)
    with torch.no_grad():
        given = inputs(model, 2, 1)
        assert torch.equal(model(**given).logits, base(**given).logits)
    assert logits(case, model).isfinite().all()
