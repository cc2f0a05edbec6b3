"""Loading a converted model: the right base or an error, and an upgraded model that behaves."""

from __future__ import annotations

import copy
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dcsurgery
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import (
    CheckpointNotFoundError,
    MalformedCheckpointError,
    RequestError,
)
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import DELTA_FILE, PLAN_FILE
from dcsurgery.tiny import write_tiny_llava
from tests.architectures.cases import load
from tests.architectures.inputs import llava_inputs
from tests.closeness import PAPER, assert_near
from tests.surgery import random_matrix, write_delta

MATRIX = "dense_connector.weight"


@pytest.fixture(scope="module")
def matrix(tiny_clip: Path) -> Tensor:
    return random_matrix(make_plan(open_checkpoint(tiny_clip), Connector()))


@pytest.fixture(scope="module")
def delta(tiny_clip: Path, matrix: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of tiny_clip whose matrix is not zero. Do not write into it."""
    folder = tmp_path_factory.mktemp("loading") / "delta"
    write_delta(tiny_clip, folder, matrix)
    return folder


@pytest.fixture(scope="module")
def stock(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock conversion of tiny_clip, drawn at random. Do not write into it."""
    folder = tmp_path_factory.mktemp("loading") / "stock"
    convert_checkpoint(tiny_clip, folder, init="paper")
    return folder


@pytest.fixture(scope="module")
def shared(delta: Path) -> Any:
    """The upgraded model in fp32. Leave it as it is."""
    return dcsurgery.load(delta)


@pytest.fixture()
def model(shared: Any) -> Any:
    return copy.deepcopy(shared)


def run(model: Any, batch: int = 1, images: int = 1) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**llava_inputs(model, batch, images)).logits
    return logits


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=2))


# --- where the weights come from ---


def test_a_delta_loads_by_text_and_by_path(delta: Path, shared: Any, tiny_clip: Path) -> None:
    again = dcsurgery.load(str(delta))
    assert torch.equal(run(again), run(shared))
    assert (run(again) - run(load(tiny_clip))).abs().max() > 0.05
    assert not again.training and type(again).__name__ == "LlavaForConditionalGeneration"


def test_a_stock_folder_loads_as_plain_transformers_loads_it(stock: Path) -> None:
    model = dcsurgery.load(str(stock))
    assert torch.equal(run(model), run(load(stock)))
    assert not hasattr(model, "dense_connector")


def test_a_base_that_moved_is_named_and_can_be_given(
    tiny_clip: Path, matrix: Tensor, shared: Any, tmp_path: Path
) -> None:
    base = copy_of(tiny_clip, tmp_path / "base")
    write_delta(base, tmp_path / "delta", matrix)
    moved = base.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointNotFoundError) as caught:
        dcsurgery.load(tmp_path / "delta")
    assert str(base) in caught.value.message and "base=FOLDER" in caught.value.hint
    assert torch.equal(run(dcsurgery.load(tmp_path / "delta", base=moved)), run(shared))


def swap_projector(folder: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["multi_modal_projector.linear_2.bias"][0] += 1

    edit_tensors(folder / "model.safetensors", edit)


def rename_tensor(folder: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        name = "language_model.model.norm.weight"
        tensors["language_model.model.morn.weight"] = tensors.pop(name)

    edit_tensors(folder / "model.safetensors", edit)


CHANGED_BASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "config": (lambda base: edit_json(base / "config.json", added=1), "config.json differs"),
    "header": (rename_tensor, "weight files"),
    "projector": (swap_projector, "multi_modal_projector.linear_2.bias has other values"),
}


@pytest.mark.parametrize("name", CHANGED_BASES)
def test_a_base_that_changed_is_refused(
    name: str, delta: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    change, said = CHANGED_BASES[name]
    base = copy_of(tiny_clip, tmp_path / "base")
    assert dcsurgery.load(delta, base=base)
    change(base)
    with pytest.raises(MalformedCheckpointError) as caught:
        dcsurgery.load(delta, base=base)
    assert said in caught.value.message
    assert str(tiny_clip) in caught.value.hint


def tamper(folder: Path) -> None:
    edit_tensors(folder / DELTA_FILE, lambda tensors: tensors[MATRIX][0, 0].add_(1))


def rename_matrix(folder: Path) -> None:
    edit_tensors(folder / DELTA_FILE, lambda t: t.update({"other.weight": t.pop(MATRIX)}))


def cut(folder: Path) -> None:
    raw = (folder / DELTA_FILE).read_bytes()
    (folder / DELTA_FILE).write_bytes(raw[:-1])


BROKEN_DELTAS: dict[str, Callable[[Path], object]] = {
    "value": tamper,
    "name": rename_matrix,
    "length": cut,
    "gone": lambda folder: (folder / DELTA_FILE).unlink(),
    "plan of a tensor": lambda folder: edit_json(folder / PLAN_FILE, delta=[]),
}


@pytest.mark.parametrize("name", BROKEN_DELTAS)
def test_a_delta_that_is_not_as_planned_is_refused(name: str, delta: Path, tmp_path: Path) -> None:
    folder = copy_of(delta, tmp_path / "delta")
    BROKEN_DELTAS[name](folder)
    with pytest.raises(MalformedCheckpointError) as caught:
        dcsurgery.load(folder)
    assert "convert" in caught.value.hint


def test_base_files_beside_a_delta_are_not_taken_for_the_model(
    delta: Path, shared: Any, tiny_clip: Path, tmp_path: Path
) -> None:
    folder = copy_of(delta, tmp_path / "delta")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_clip / name, folder / name)
    assert torch.equal(run(dcsurgery.load(folder)), run(shared))


@pytest.mark.parametrize("name", ["nowhere/at/all", ""])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises((CheckpointNotFoundError, RequestError)) as caught:
        dcsurgery.load(name)
    assert len(caught.value.hint) > 10


# --- keys that plain transformers ignores, and those it must not ---


def stray(folder: Path, *names: str) -> Path:
    edit_tensors(
        folder / "model.safetensors",
        lambda tensors: tensors.update({name: torch.zeros(2, 2) for name in names}),
    )
    return folder


HARMLESS = (
    "vision_tower.vision_model.embeddings.position_idz",
    "vision_tower.vision_model.head.probe",
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    "my_multi_modal_projector.linear_1.weight",
)


def test_tensors_the_model_has_no_place_for_are_ignored(tiny_clip: Path, tmp_path: Path) -> None:
    base = stray(copy_of(tiny_clip, tmp_path / "base"), *HARMLESS)
    for form in ("stock", "delta"):
        convert_checkpoint(base, tmp_path / form, form=form)
        model = dcsurgery.load(tmp_path / form)
        assert_near(run(model), run(load(tiny_clip)))


@pytest.mark.parametrize("name", [MATRIX, "multi_modal_projector.linear_3.weight"])
def test_unused_tensors_of_connector_or_projector_are_an_error(
    name: str, tiny_clip: Path, tmp_path: Path
) -> None:
    base = stray(copy_of(tiny_clip, tmp_path / "base"), name)
    for form in ("stock", "delta"):
        convert_checkpoint(base, tmp_path / form, form=form)
        with pytest.raises(MalformedCheckpointError, match="unexpected tensors") as caught:
            dcsurgery.load(tmp_path / form)
        assert name in caught.value.message


def test_a_missing_tensor_is_an_error(stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    name = "language_model.model.norm.weight"
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(MalformedCheckpointError, match=r"missing tensors.*norm\.weight") as caught:
        dcsurgery.load(folder)
    assert "verify" in caught.value.hint


def test_a_tensor_of_another_shape_is_an_error(stock: Path, tmp_path: Path) -> None:
    folder = copy_of(stock, tmp_path / "stock")
    edit_json(folder / "config.json", vision_feature_layer=[0, 1])
    with pytest.raises(MalformedCheckpointError, match=r"mismatched tensors.*linear_1\.weight"):
        dcsurgery.load(folder)


# --- keywords go to from_pretrained ---


@pytest.mark.parametrize("form", ["stock", "delta"])
def test_keywords_reach_transformers(form: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(form)
    model = dcsurgery.load(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert {item.dtype for item in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "eager"


def test_dtype_follows_the_checkpoint_by_default(tmp_path: Path) -> None:
    base = write_tiny_llava(tmp_path / "base", "clip", dtype="float16")
    convert_checkpoint(base, tmp_path / "delta", form="delta")
    model = dcsurgery.load(tmp_path / "delta")
    assert {item.dtype for item in model.parameters()} == {torch.float16}
    assert torch.equal(run(model), run(load(base, dtype=torch.float16)))


def test_device_map_on_one_device(delta: Path, shared: Any) -> None:
    model = dcsurgery.load(delta, device_map="cpu")
    assert torch.equal(run(model), run(shared))


OFFLOADS = {
    "projector": ["model.multi_modal_projector"],
    "tower": ["model.vision_tower"],
    "projector and tower": ["model.multi_modal_projector", "model.vision_tower"],
    "language model": ["model.language_model"],
}


@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
@pytest.mark.parametrize("name", OFFLOADS)
def test_parts_offloaded_to_disk_compute_the_same(
    name: str, delta: Path, shared: Any, tmp_path: Path
) -> None:
    parts = ["model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head"]
    device_map = {part: "disk" if part in OFFLOADS[name] else "cpu" for part in parts}
    model = dcsurgery.load(delta, device_map=device_map, offload_folder=tmp_path / "offload")
    assert not model.dense_connector.weight.is_meta
    for _ in range(2):
        assert torch.equal(run(model), run(shared))


@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
def test_a_redrawn_projector_cannot_be_offloaded(tiny_clip: Path, tmp_path: Path) -> None:
    """Values copied into a tensor that lies on disk would be lost silently."""
    convert_checkpoint(tiny_clip, tmp_path / "delta", form="delta", init="paper")
    parts = ["model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head"]
    device_map = dict.fromkeys(parts, "cpu") | {"model.multi_modal_projector": "disk"}
    with pytest.raises(RequestError) as caught:
        dcsurgery.load(
            tmp_path / "delta", device_map=device_map, offload_folder=tmp_path / "offload"
        )
    assert "linear_1" in caught.value.message and "device_map" in caught.value.hint


# --- the upgraded model behaves ---


def test_saving_an_upgraded_model_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        model.save_pretrained(tmp_path / "saved")
    assert "unmodified base" in caught.value.message and "stock" in caught.value.hint
    assert not (tmp_path / "saved").exists()


def test_a_deep_copy_is_a_model_of_its_own(shared: Any, model: Any) -> None:
    expected = run(shared)
    assert torch.equal(run(model), expected)
    with torch.no_grad():
        model.dense_connector.weight.zero_()
    assert not torch.equal(run(model), expected)
    assert torch.equal(run(shared), expected)
    with pytest.raises(RequestError):
        model.save_pretrained("nowhere")


def gradients(model: Any, *, train_tower: bool) -> dict[str, Tensor]:
    model.train().requires_grad_(False)
    model.dense_connector.weight.requires_grad_(True)
    if train_tower:
        model.model.vision_tower.requires_grad_(True)
    model(**llava_inputs(model, 2, 1)).logits.square().mean().backward()
    return {n: item.grad for n, item in model.named_parameters() if item.grad is not None}


@pytest.mark.parametrize("train_tower", [True, False], ids=["trained tower", "frozen tower"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(
    shared: Any, model: Any, reentrant: bool, train_tower: bool
) -> None:
    expected = gradients(copy.deepcopy(shared), train_tower=train_tower)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant and train_tower:
        model.model.vision_tower.enable_input_require_grads()
    assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    found = gradients(model, train_tower=train_tower)
    assert MATRIX in found and found[MATRIX].abs().max() > 0
    assert found.keys() == expected.keys()
    for name in expected:
        assert_near(found[name], expected[name], PAPER, name)


def test_two_threads_do_not_mix(shared: Any) -> None:
    inputs = [llava_inputs(shared, batch, 1) for batch in (1, 2)]
    expected = [run(shared, batch) for batch in (1, 2)]
    wrong: list[int] = []
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for _ in range(15):
            with torch.no_grad():
                found = shared(**inputs[index]).logits
            if not torch.equal(found, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


BREAKS = {
    "inside the tower": lambda model: model.model.vision_tower.encoder.layers[2],
    "between tower and projector": lambda model: model.model.multi_modal_projector,
    "in the projector, after the site": lambda model: model.model.multi_modal_projector.linear_2,
    "in the language model": lambda model: model.model.language_model,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_forward_that_broke_leaves_nothing_behind(name: str, model: Any) -> None:
    expected = run(model)

    def fail(*args: Any) -> None:
        raise KeyError("broken on purpose")

    handle = BREAKS[name](model).register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="on purpose"):
        run(model, batch=2)
    handle.remove()
    assert torch.equal(run(model), expected)


def test_the_tower_alone_between_two_forwards(model: Any) -> None:
    expected = run(model)
    pixels = llava_inputs(model, 3, 1)["pixel_values"]
    with torch.no_grad():
        model.model.vision_tower(pixels)
    assert torch.equal(run(model), expected)


def test_image_features_are_the_models_own(model: Any) -> None:
    inputs = llava_inputs(model, 1, 1)
    seen: list[Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    run(model)
    handle.remove()
    with torch.no_grad():
        found = model.get_image_features(pixel_values=inputs["pixel_values"])
    pooled = getattr(found, "pooler_output", found)
    assert torch.equal(torch.cat(list(pooled)), seen[0].reshape(-1, seen[0].shape[-1]))


def test_a_projector_without_its_tower_is_refused(model: Any) -> None:
    with pytest.raises(RequestError) as caught:
        model.model.multi_modal_projector(torch.zeros(1, 16, 16))
    assert "pixel_values" in caught.value.hint
