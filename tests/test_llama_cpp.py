"""llama.cpp itself answers from a stock checkpoint as transformers does.

The engine is optional: `pip install xllamacpp==2026.10.11549 gguf` (a prebuilt CPU wheel of 34 MB;
gguf writes its files), into this environment or with `--target DIR --no-deps` and DIR on
PYTHONPATH. Without them these tests are skipped, and test_serving.py restates what is read.

Towers are SigLIP: llama.cpp puts a class token behind the patches, CLIP's is in front, so it
computes something else for every LLaVA with a CLIP tower, converted or not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.folding import learned_shares
from dcsurgery.connectors.request import Connector
from dcsurgery.loading.load import load_model
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan import make_plan
from dcsurgery.tiny import write_tiny_llava
from tests.architectures.cases import load
from tests.closeness import assert_near
from tests.gguf_files import write_gguf
from tests.surgery import SERVED, random_matrix, write_delta, write_folded

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")

PREFIX, QUESTION, TOKENS = "USER: ", " How many? ASSISTANT:", 6
FIRST = "multi_modal_projector.linear_1.weight"
# In log-probability. Unconverted bases differ by up to 0.005 (ggml's gelu, for one, is the tanh
# form in float16); a connector that is lost or an order that is mixed up moves them by 0.6 to 6.
TOLERANCE, LOST = 0.02, 0.5
# Logits of mix, far from dci's means.
MIX = [1.5, -0.5, -1.0, 1.0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The seed is one whose best token leads by more than twice the tolerance at every step."""
    return write_tiny_llava(tmp_path_factory.mktemp("served") / "base", "siglip", seed=8)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of exactly the tower's size: engines resize in different ways."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("image") / "image.png"
    Image.fromarray(pixels).save(path)
    return path


def run_engine(folder: Path, image: Path) -> subprocess.CompletedProcess[str]:
    text, projector = (folder.with_name(f"{folder.name}-{k}.gguf") for k in ("text", "mmproj"))
    write_gguf(folder, text, projector)
    vocab = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    command = [sys.executable, "-m", "tests.llama_cpp_engine", text, projector, image]
    command += [PREFIX, QUESTION, str(TOKENS), str(vocab)]
    # Otherwise a failed assertion waits seconds for a debugger.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    root = Path(__file__).parents[1]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=root, env=environment, timeout=120
    )


def served(folder: Path, image: Path) -> tuple[list[int], Tensor]:
    """Greedy tokens and the log-probabilities [tokens, vocabulary] of llama.cpp."""
    ran = run_engine(folder, image)
    assert ran.returncode == 0, ran.stderr
    steps = json.loads(ran.stdout)
    return [step["id"] for step in steps], torch.tensor([step["logprobs"] for step in steps])


def expected(folder: Path, image: Path, model: Any = None) -> tuple[list[int], Tensor]:
    """The same of transformers, with the checkpoint's own processor and, by default, model."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    with Image.open(image) as picture:
        inputs = processor(images=picture, text=f"{PREFIX}<image>{QUESTION}", return_tensors="pt")
    found = (model or load(folder)).generate(
        **inputs,
        max_new_tokens=TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens, torch.cat(found.logits).log_softmax(-1)


def fold(base: Path, output: Path, **options: Any) -> Any:
    """Write `base` with a random connector in stock form; return the model it was folded from.

    That is the base with the connector as a branch beside the projector's first matrix.
    """
    plan = make_plan(open_checkpoint(base), Connector.of(**options))
    tensors, shares = {"weight": random_matrix(plan)}, None
    if options.get("connector") == "mix":
        tensors["mix"] = torch.tensor(MIX)
        shares = learned_shares(plan.layout, MIX)
    write_folded(base, output, tensors["weight"], shares, **options)
    branch = output.with_name(output.name + "-branch")
    write_delta(base, branch, tensors, **options)
    return load_model(branch)


def relist(source: Path, output: Path, order: Sequence[int], share: Sequence[float]) -> Path:
    """Write `source` with its listed layers in another order, columns scaled by `share`.

    Transformers reads the list in the order it has, so the function stays the same as long as the
    shares of a layer add up to one.
    """
    output.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (output / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    layers = config["vision_feature_layer"]
    config["vision_feature_layer"] = [layers[index] for index in order]
    (output / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    blocks = tensors[FIRST].chunk(len(layers), dim=1)
    joined = [part * blocks[index] for index, part in zip(order, share, strict=True)]
    tensors[FIRST] = torch.cat(joined, dim=1)
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    return output


def test_base_is_served_as_transformers_runs_it(base: Path, image: Path) -> None:
    assert_same(served(base, image), expected(base, image), TOLERANCE)


def test_stock_conversion_is_served_as_its_base(base: Path, image: Path, tmp_path: Path) -> None:
    plan = convert_checkpoint(base, tmp_path / "out", form="stock").plan
    assert plan.stock_layers == [0, 1, 2, 3]
    found = served(tmp_path / "out", image)
    assert_same(found, expected(tmp_path / "out", image), TOLERANCE)
    # The added columns are zero: the engine's other sums stay what they were.
    assert_same(found, served(base, image), 1e-5)


@pytest.mark.parametrize("options", SERVED.values(), ids=SERVED)
def test_folded_connector_is_served_as_its_branch_runs(
    options: dict[str, Any], base: Path, image: Path, tmp_path: Path
) -> None:
    branch = fold(base, tmp_path / "out", **options)
    found = served(tmp_path / "out", image)
    assert_same(found, expected(base, image, branch), TOLERANCE)
    # The connector is seen at all.
    assert distance(found, served(base, image)) > LOST


def test_descending_list_would_be_served_wrong(base: Path, image: Path, tmp_path: Path) -> None:
    fold(base, tmp_path / "out")
    turned = relist(tmp_path / "out", tmp_path / "turned", [3, 2, 1, 0], [1.0] * 4)
    right = expected(tmp_path / "out", image)
    assert_same(expected(turned, image), right, 1e-4)
    assert distance(served(turned, image), right) > LOST


def test_list_with_a_duplicate_would_end_the_engine(
    base: Path, image: Path, tmp_path: Path
) -> None:
    fold(base, tmp_path / "out")
    share = [1.0, 1.0, 1.0, 0.5, 0.5]
    doubled = relist(tmp_path / "out", tmp_path / "doubled", [0, 1, 2, 3, 3], share)
    assert_same(expected(doubled, image), expected(tmp_path / "out", image), 1e-4)
    ran = run_engine(doubled, image)
    assert ran.returncode != 0
    assert "GGML_ASSERT(ggml_can_mul_mat(a, b)) failed" in ran.stderr


def distance(found: tuple[list[int], Tensor], other: tuple[list[int], Tensor]) -> float:
    """The largest difference of the first token's log-probabilities: the prompt is the same."""
    return float((found[1][0] - other[1][0]).abs().max())


def assert_same(
    found: tuple[list[int], Tensor], other: tuple[list[int], Tensor], tolerance: float
) -> None:
    assert found[0] == other[0]
    assert_near(found[1], other[1], tolerance)
