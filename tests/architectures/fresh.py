"""A model that transformers itself has made and saved: its own names, no processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import dcsurgery
from dcsurgery.architectures import find_architecture
from tests.architectures.cases import TinyModel, load


def check_fresh_model(config: dict[str, Any], work: Path, tiny: TinyModel) -> None:
    """Inspect, convert to every form, verify and load a model made from `config`.

    `tiny` only lends its inputs.
    """
    model_class = getattr(transformers, config["architectures"][0])
    torch.manual_seed(0)
    model_class(model_class.config_class.from_dict(config)).save_pretrained(work / "base")
    base = load(work / "base")
    vision = config["vision_config"]
    tower = dcsurgery.inspect_checkpoint(work / "base").anatomy.tower
    assert (tower.depth, tower.width) == (vision["num_hidden_layers"], vision["hidden_size"])
    inputs = tiny.inputs(base, 2, 1)
    with torch.no_grad():
        expected = tiny.forward(base, inputs)
    for form in find_architecture(config).forms:
        dcsurgery.convert_checkpoint(work / "base", work / form, form=form)
        report = dcsurgery.verify_checkpoint(work / form, logits=True)
        assert report.passed, report.checks
        with torch.no_grad():
            found = tiny.forward(dcsurgery.load_model(work / form, dtype=torch.float32), inputs)
        assert (found - expected).abs().max() <= (1e-5 if form == "stock" else 0)
