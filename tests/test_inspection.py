"""inspect: a stable JSON form whose numbers are those of the loaded model."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.architectures import find_architecture
from dcsurgery.checkpoint.contents import Checkpoint, WeightFile
from dcsurgery.checkpoint.headers import Header, TensorEntry
from dcsurgery.checkpoint.model_ref import ModelRef
from dcsurgery.connectors import KINDS
from dcsurgery.errors import CheckpointNotFoundError, UnknownArchitectureError
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.inspection import count_parameters, inspect_checkpoint
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.llava import write_llava
from tests.architectures.cases import load
from tests.headers_only import checkpoint, llava_like

TOP = {
    "schema_version", "model", "commit", "class_name", "anatomy", "parameters", "weights",
    "side_files", "left_out", "converted", "offers", "original",
    "set_aside", "processor",
}  # fmt: skip
ANATOMY = {
    "architecture", "tower", "projector", "feature_layers", "feature_layer", "dropped_tokens",
    "image_tokens", "variable_resolution", "language_model", "dtype", "feature_width",
    "first_state", "normed",
}  # fmt: skip
TOWER = {
    "kind", "module", "blocks", "width", "depth", "prefix_tokens", "image_size", "patch_size",
    "twins", "grid",
}  # fmt: skip
PROJECTOR = {"beside", "module", "sites", "tensors"}
SITE = {"module", "weight", "in_features", "out_features", "rows"}
OFFER = {"kind", "summary", "blocks", "costs", "notes", "refused", "layout"}
LAYOUT = {"kind", "blocks", "axis", "stride", "mixed", "normed", "pool"}
COST = {
    "form", "loader", "new_parameters", "extra_bytes", "extra_flops_per_image", "image_tokens",
}  # fmt: skip


@pytest.mark.parametrize("tower", ["clip", "siglip", "pixtral"])
def test_the_json_form_has_exactly_these_keys(tower: str, request: pytest.FixtureRequest) -> None:
    found = inspect_checkpoint(request.getfixturevalue(f"tiny_{tower}")).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False))
    assert set(found) == TOP and found["schema_version"] == 1
    assert set(found["anatomy"]) == ANATOMY
    assert set(found["anatomy"]["tower"]) == TOWER
    assert set(found["anatomy"]["projector"]) == PROJECTOR
    assert all(set(site) == SITE for site in found["anatomy"]["projector"]["sites"])
    assert all(set(item) == {"name", "size", "tensors"} for item in found["weights"])
    assert {offer["kind"] for offer in found["offers"]} == set(KINDS)
    for offer in found["offers"]:
        assert set(offer) == OFFER
        if offer["kind"] == "sti" and tower == "pixtral":  # no square grid to pool
            assert offer["refused"] and offer["costs"] == () and offer["layout"] is None
            continue
        assert offer["refused"] is None
        assert set(offer["layout"]) == LAYOUT
        forms = ["delta"] if offer["kind"] == "sti" else ["stock", "delta", "portable"]
        assert [cost["form"] for cost in offer["costs"]] == forms
        assert all(set(cost) == COST for cost in offer["costs"])


def features_of(model: Any, tower: str) -> int:
    import torch

    extra = {"image_sizes": torch.tensor([[16, 16]])} if tower == "pixtral" else {}
    found = model.get_image_features(pixel_values=torch.zeros(1, 3, 16, 16), **extra)
    pooled = getattr(found, "pooler_output", found)
    return sum(part.numel() // part.shape[-1] for part in pooled)


@pytest.mark.parametrize("tower", ["clip", "siglip", "pixtral"])
def test_the_numbers_are_those_of_the_loaded_model(
    tower: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"tiny_{tower}")
    found, model = inspect_checkpoint(folder).to_dict(), load(folder)
    anatomy, config = found["anatomy"], model.config
    vision = config.vision_config
    assert found["parameters"] == sum(item.numel() for item in model.parameters())
    assert found["class_name"] == type(model).__name__
    assert anatomy["tower"]["kind"] == vision.model_type
    assert anatomy["tower"]["width"] == vision.hidden_size
    assert anatomy["tower"]["depth"] == vision.num_hidden_layers
    assert anatomy["tower"]["grid"] == vision.image_size // vision.patch_size == 4
    assert anatomy["tower"]["prefix_tokens"] == (1 if tower == "clip" else 0)
    assert anatomy["feature_layer"] == config.vision_feature_layer % (vision.num_hidden_layers + 1)
    assert anatomy["image_tokens"] == features_of(model, tower)
    (site,) = anatomy["projector"]["sites"]
    assert site["out_features"] == config.text_config.hidden_size
    assert site["in_features"] == anatomy["feature_width"] == vision.hidden_size
    assert anatomy["language_model"] == config.text_config.model_type
    assert anatomy["dtype"] == "F32"
    files = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert {item["name"]: item["size"] for item in found["weights"]} == files
    assert sum(item["tensors"] for item in found["weights"]) == len(model.state_dict())
    assert "tokenizer.json" in found["side_files"] and not found["converted"]
    assert (found["model"], found["commit"]) == (str(folder), None)


def test_costs_are_what_a_conversion_adds(tiny_clip: Path, tmp_path: Path) -> None:
    offers = {item.kind: item for item in inspect_checkpoint(tiny_clip).offers}
    before = sum(item.numel() for item in load(tiny_clip).parameters())
    for kind, offer in offers.items():
        for cost in offer.costs:
            out = tmp_path / f"{kind}-{cost.form}"
            plan = convert_checkpoint(tiny_clip, out, connector=kind, form=cost.form).plan
            assert plan.new_parameters == cost.new_parameters
            assert cost.extra_bytes == 4 * cost.new_parameters
            assert plan.layout.groups == offer.blocks
            if cost.form == "stock":
                after = sum(item.numel() for item in load(out).parameters())
                assert after - before == cost.new_parameters
            else:
                held = [math.prod(record.shape) for record in plan.delta]
                assert sum(held) == cost.new_parameters


def test_a_converted_folder_is_recognised(tiny_clip: Path, tmp_path: Path) -> None:
    convert_checkpoint(tiny_clip, tmp_path / "out")
    found = inspect_checkpoint(tmp_path / "out")
    assert found.converted
    assert found.anatomy.feature_layers == (0, 1, 2, 3)


def test_a_connector_that_does_not_fit_says_why(tmp_path: Path) -> None:
    config, _ = llava_like(width=16, depth=1, hidden=24, image_size=28)
    config["vision_config"] |= {"num_attention_heads": 2, "intermediate_size": 32}
    config["text_config"] |= {
        "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32,
        "vocab_size": 320,
    }  # fmt: skip
    folder = write_llava(tmp_path / "shallow", config)
    offers = {item.kind: item for item in inspect_checkpoint(folder).offers}
    for offer in offers.values():
        assert offer.refused and not offer.costs and not offer.blocks
    assert "1 hidden states" in str(offers["dci"].refused)


def test_what_cannot_be_inspected_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        inspect_checkpoint(tmp_path)
    with pytest.raises(UnknownArchitectureError):
        find_architecture({"architectures": ["GPT2LMHeadModel"]})


def test_a_true_llava_is_described_as_published() -> None:
    source = checkpoint(*llava_like())
    anatomy = find_architecture(source.config).dissect(source.config, source.tensors)
    assert (anatomy.tower.grid, anatomy.feature_layer, anatomy.image_tokens) == (24, 23, 576)
    assert asdict(anatomy)["tower"]["width"] == 1024


def test_bytes_of_another_dtype_are_counted(tmp_path: Path, tiny_clip: Path) -> None:
    folder = write_tiny_llava(tmp_path / "half", "clip", dtype="bfloat16")
    halves, wholes = inspect_checkpoint(folder).offers, inspect_checkpoint(tiny_clip).offers
    for half, whole in zip(halves, wholes, strict=True):
        if half.kind == "mix":  # its logits are fp32 in every model
            continue
        for narrow, wide in zip(half.costs, whole.costs, strict=True):
            assert 2 * narrow.extra_bytes == wide.extra_bytes


QUANTISED: dict[str, tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, Any]]] = {
    # A matrix of [64, 32] as each method stores it, groups of 32.
    "gptq": ({"qweight": ("I32", (4, 64)), "qzeros": ("I32", (1, 8)), "scales": ("F16", (1, 64)),
              "g_idx": ("I32", (32,))}, {"quant_method": "gptq", "bits": 4}),
    "gptq 8": ({"qweight": ("I32", (8, 64)), "qzeros": ("I32", (1, 16)), "scales": ("F16", (1, 64)),
                "g_idx": ("I32", (32,))}, {"quant_method": "gptq", "bits": 8}),
    "awq": ({"qweight": ("I32", (32, 8)), "qzeros": ("I32", (1, 8)), "scales": ("F16", (1, 64))},
            {"quant_method": "awq", "bits": 4}),
    "bnb": ({"weight": ("U8", (1024, 1)), "weight.absmax": ("F32", (32,)),
             "weight.quant_map": ("F32", (16,)),
             "weight.quant_state.bitsandbytes__nf4": ("U8", (80,))},
            {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bnb 8": ({"weight": ("I8", (64, 32)), "SCB": ("F32", (64,))},
              {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "packed": ({"weight_packed": ("I32", (64, 4)), "weight_scale": ("BF16", (64, 1)),
                "weight_shape": ("I64", (2,))},
               {"quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}),
    "fp8": ({"weight": ("F8_E4M3", (64, 32)), "weight_scale": ("BF16", (64, 1))}, {}),
    "plain": ({"weight": ("BF16", (64, 32))}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", QUANTISED)
def test_parameters_of_packed_weights_are_counted_unpacked(name: str) -> None:
    stored, stated = QUANTISED[name]
    tensors = {
        f"model.layers.0.up.{key}": TensorEntry(f"model.layers.0.up.{key}", dtype, shape, 0, 0)
        for key, (dtype, shape) in stored.items()
    }
    tensors["model.norm.weight"] = TensorEntry("model.norm.weight", "BF16", (5,), 0, 0)
    file = WeightFile("model.safetensors", 0, Header(tensors, None, 8))
    config = {"quantization_config": stated} if stated else {}
    checkpoint = Checkpoint(ModelRef("m"), config, "", (file,), None, (), ())
    assert count_parameters(checkpoint) == 64 * 32 + 5
