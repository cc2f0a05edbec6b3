"""Attach survives what people do to big models: checkpointing, compiling, dispatching, 4 bits."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

import dcsurgery
from dcsurgery.connectors.attach import attach, find_module
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import RequestError
from dcsurgery.loading.load import install
from dcsurgery.tiny import write_tiny_llava
from tests.architectures.cases import Case, TinyModel, load, make_case
from tests.architectures.inputs import idefics2_inputs, llava_inputs
from tests.architectures.packed import PackedContract, packed_forward
from tests.closeness import PAPER, assert_near
from tests.surgery import random_matrix, write_delta
from tests.tiny.idefics2 import write_tiny_idefics2
from tests.tiny.qwen2_5_vl import write_tiny_qwen2_5_vl

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Family:
    """`offloads` names groups of modules to put on disk; `unquantised` keeps vision floating."""

    write: Callable[[Path], Path]
    inputs: Callable[[Any, int, int], dict[str, Tensor]]
    offloads: dict[str, tuple[str, ...]]
    unquantised: tuple[str, ...]

    def tiny(self, folder: Path) -> TinyModel:
        return TinyModel(self.write(folder), self.inputs, packed_forward)


VISION = "model.visual"
FAMILIES = {
    "llava": Family(
        write_tiny_llava,
        llava_inputs,
        {"tower and projector": ("model.vision_tower", "model.multi_modal_projector")},
        ("model.vision_tower", "model.multi_modal_projector"),
    ),
    # The merger, where the connector's matrix goes, lies inside the tower.
    "qwen2_5_vl": Family(
        write_tiny_qwen2_5_vl,
        PackedContract.inputs,
        {
            "tower": (VISION,),
            "merger": (f"{VISION}.merger",),
            "blocks": (f"{VISION}.blocks",),
            "language model": ("model.language_model",),
        },
        (VISION,),
    ),
    # Two sites share one matrix.
    "idefics2": Family(
        write_tiny_idefics2,
        idefics2_inputs,
        {
            "one site": ("model.connector.modality_projection.gate_proj",),
            "tower": ("model.vision_model",),
        },
        ("model.vision_model", "model.connector"),
    ),
}
OFFLOADS = [(name, group) for name, family in FAMILIES.items() for group in family.offloads]
# Up to transformers 5.22 hooks are part of what is checkpointed.
HOOKS_INSIDE = GradientCheckpointingLayer.__call__ is not nn.Module.__call__
KINDS = (Connector("dci"), Connector("mix"))


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tiny(name: str, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """The family's tiny checkpoint. Do not write into it."""
    return FAMILIES[name].tiny(tmp_path_factory.mktemp("robust") / "base")


def upgraded(case: Case) -> Any:
    """The model with a connector whose tensors are not what they start as."""
    draw = torch.Generator().manual_seed(7)
    tensors = {
        record.name.removeprefix("dense_connector."): torch.randn(record.shape, generator=draw) / 4
        for record in case.plan.delta
    }
    model = copy.deepcopy(case.plain())
    attach(model, case.anatomy, case.layout, case.architecture.arrange, tensors)
    return model


def run(case: Case, model: Any, batch: int = 1, images: int = 1) -> Tensor:
    with torch.no_grad():
        return case.tiny.forward(model, case.tiny.inputs(model, batch, images))


def gradients(case: Case, model: Any, *, trained: bool) -> dict[str, Tensor]:
    """Gradients of the connector, and of the vision tower when that is trained."""
    model.train().requires_grad_(False)
    model.dense_connector.requires_grad_(True)
    find_module(model, case.anatomy.tower.module).requires_grad_(trained)
    case.tiny.forward(model, case.tiny.inputs(model, 2, 1)).square().mean().backward()
    return {n: item.grad for n, item in model.named_parameters() if item.grad is not None}


@pytest.mark.parametrize("trained", [True, False], ids=["trained tower", "frozen tower"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(
    tiny: TinyModel, spec: Connector, reentrant: bool, trained: bool
) -> None:
    case = make_case(tiny, spec)
    expected = gradients(case, upgraded(case), trained=trained)
    model = upgraded(case)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant and trained:
        find_module(model, case.anatomy.tower.module).enable_input_require_grads()
    check_gradients(case, model, expected, refused=reentrant and trained and HOOKS_INSIDE)


def check_gradients(case: Case, model: Any, expected: dict[str, Tensor], *, refused: bool) -> None:
    """A reentrant checkpoint hides a trained tower's graph: refused, not silently wrong."""
    trained = len(expected) > len(list(model.dense_connector.parameters()))
    if refused:
        with pytest.raises(RequestError, match="reentrant") as caught:
            gradients(case, model, trained=trained)
        assert "use_reentrant" in caught.value.hint
        return
    found = gradients(case, model, trained=trained)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert_near(found[name], gradient, PAPER, name)


def checkpoint_calls(case: Case, model: Any, *, reentrant: bool) -> None:
    """Checkpoint the tower's blocks hooks and all, as transformers 5.0 to 5.22 does."""
    for block in find_module(model, case.anatomy.tower.blocks).children():
        kind = type(block)

        def call(self: nn.Module, *args: Any, _kind: Any = kind, **kwargs: Any) -> Any:
            return checkpoint(
                partial(_kind.__call__, self, **kwargs), *args, use_reentrant=reentrant
            )

        block.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    if reentrant:
        find_module(model, case.anatomy.tower.module).enable_input_require_grads()


@pytest.mark.parametrize("trained", [True, False], ids=["trained tower", "frozen tower"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.kind)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_hooks_inside_the_checkpoint_change_no_gradient(
    tiny: TinyModel, spec: Connector, reentrant: bool, trained: bool
) -> None:
    case = make_case(tiny, spec)
    expected = gradients(case, upgraded(case), trained=trained)
    model = upgraded(case)
    checkpoint_calls(case, model, reentrant=reentrant)
    check_gradients(case, model, expected, refused=reentrant and trained)
    assert torch.equal(run(case, model.eval()), run(case, upgraded(case)))


@pytest.fixture()
def dynamo() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_language_model_changes_nothing(tmp_path: Path) -> None:
    case = make_case(FAMILIES["qwen2_5_vl"].tiny(tmp_path / "base"), Connector("dci"))
    model = upgraded(case)
    expected = run(case, model), run(case, model, 2, 1), run(case, model, 2, 0)
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    assert torch.equal(run(case, model), expected[0])
    assert torch.equal(run(case, model, 2, 1), expected[1])
    assert torch.equal(run(case, model, 2, 0), expected[2])


def device_map(model: nn.Module, offloaded: tuple[str, ...]) -> dict[str, str]:
    """Every smallest module that holds no offloaded one on the CPU, the offloaded ones on disk."""
    found: dict[str, str] = {}

    def place(prefix: str, module: nn.Module) -> None:
        for key, child in module.named_children():
            path = f"{prefix}{key}"
            if path in offloaded:
                found[path] = "disk"
            elif any(item.startswith(f"{path}.") for item in offloaded):
                place(f"{path}.", child)
            else:
                found[path] = "cpu"

    place("", model)
    return found


@pytest.mark.filterwarnings("ignore:Some parameters are on the meta device")
@pytest.mark.parametrize(("family", "group"), OFFLOADS)
def test_offloaded_parts_compute_the_same(family: str, group: str, tmp_path: Path) -> None:
    case = make_case(FAMILIES[family].tiny(tmp_path / "base"), Connector("dci"))
    matrix = random_matrix(case.plan)
    write_delta(case.tiny.folder, tmp_path / "delta", matrix)
    whole = dcsurgery.load(tmp_path / "delta", device_map="cpu")
    parts = device_map(load(case.tiny.folder), FAMILIES[family].offloads[group])
    model = dcsurgery.load(
        tmp_path / "delta", device_map=parts, offload_folder=tmp_path / "offload"
    )
    assert any(item.is_meta for item in model.parameters())
    assert torch.equal(model.dense_connector.weight, matrix)
    for _ in range(2):
        assert torch.equal(run(case, model), run(case, whole))


def test_a_four_bit_language_model_keeps_the_start_exact(
    name: str, tiny: TinyModel, tmp_path: Path
) -> None:
    """The connector is floating whether the projector is quantised too or not."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    case = make_case(tiny, Connector("dci"))
    dcsurgery.convert(tiny.folder, tmp_path / "zero", form="delta")
    write_delta(tiny.folder, tmp_path / "loud", random_matrix(case.plan))
    for skipped in ([*FAMILIES[name].unquantised, "lm_head"], None):
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=skipped,
        )
        base = AutoModelForImageTextToText.from_pretrained(
            tiny.folder, quantization_config=settings
        ).eval()
        model = dcsurgery.load(tmp_path / "zero", quantization_config=settings)
        site = find_module(model, case.anatomy.projector.sites[0].module)
        assert next(site.parameters()).is_floating_point() is (skipped is not None)
        assert model.dense_connector.weight.dtype == torch.float32
        expected = run(case, base)
        assert torch.equal(run(case, model), expected)
        loud = dcsurgery.load(tmp_path / "loud", quantization_config=settings)
        assert (run(case, loud) - expected).abs().max() > 0.05
        found = gradients(case, loud, trained=False)
        assert found.keys() == {"dense_connector.weight"}
        assert found["dense_connector.weight"].abs().max() > 0


def test_a_redrawn_projector_cannot_be_quantised(tmp_path: Path) -> None:
    """The delta's own values have no place in packed integers."""
    base = write_tiny_llava(tmp_path / "base")
    dcsurgery.convert(base, tmp_path / "delta", form="delta", init="paper")
    model = load(base)
    packed = torch.zeros(288, 1, dtype=torch.uint8)
    linear = model.model.multi_modal_projector.linear_2
    linear.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(RequestError, match=r"linear_2\.weight is quantised") as caught:
        install(model, dcsurgery.read_plan(tmp_path / "delta"), tmp_path / "delta")
    assert "llm_int8_skip_modules" in caught.value.hint


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pickled_model_computes_the_same(family: str, tmp_path: Path) -> None:
    case = make_case(FAMILIES[family].tiny(tmp_path / "base"), Connector("dci"))
    model = case.attached(random_matrix(case.plan))
    again = pickle.loads(pickle.dumps(model))
    inputs = case.tiny.inputs(model, 1, 1)
    with torch.no_grad():
        assert torch.equal(case.tiny.forward(again, inputs), case.tiny.forward(model, inputs))
