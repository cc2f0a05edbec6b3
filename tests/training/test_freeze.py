"""What is announced gets gradients and nothing else does, in families wired in different ways."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcsurgery.connectors.request import Connector
from dcsurgery.errors import TrainingError
from dcsurgery.training.feeding import Feed
from dcsurgery.training.freeze import GROUPS, Trained, choose, freeze, frozen_modules
from dcsurgery.training.lora import lora_targets
from dcsurgery.training.loss import SupervisedHead, supervised_loss, zero_of
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trainer import prepare
from tests.architectures.cases import Case, make_case
from tests.architectures.families import contract
from tests.closeness import assert_near
from tests.training.tasks import Rows, collate, make_rows

FAMILIES = {
    "llava": "llava.TestClip",
    "llava_next": "llava_next.TestLlavaNext",
    "paligemma": "paligemma.TestGemma2",
    "qwen2_vl": "qwen2_vl.TestQwen2VL",
    "smolvlm": "idefics3.TestSmolVLM",
    "mllama": "mllama.TestMllama",
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return make_case(contract(FAMILIES[request.param]).tiny(folder, 1), Connector("dci"))


@pytest.fixture(scope="module")
def attached(case: Case) -> Any:
    """The case's model with a connector that is not zero: all wires carry something."""
    model = case.attached()
    with torch.no_grad():
        model.dense_connector.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def rows(case: Case, attached: Any) -> Rows:
    return make_rows(case.tiny, attached, 2)


def loss_of(model: Any, rows: Rows) -> torch.Tensor:
    head = SupervisedHead(model)
    try:
        return supervised_loss(model, head, collate(rows.rows))
    finally:
        head.remove()


def made_ready(case: Case, attached: Any, rows: Rows, **values: Any) -> tuple[Any, Trained]:
    model = copy.deepcopy(attached)
    settings = TrainingSettings(**{"lora_rank": 2, "lora_dropout": 0.0, **values}).resolved()
    return model, prepare(model, case.plan, Feed(rows, collate), settings)


@pytest.mark.parametrize(
    ("train", "tower", "groups"),
    [
        ("connector", False, {"connector"}),
        ("projector", False, {"connector", "projector"}),
        ("lora", False, {"connector", "projector", "language"}),
        ("full", True, {"connector", "projector", "language", "tower"}),
    ],
)
def test_exactly_the_announced_parameters_get_gradients(
    case: Case, attached: Any, rows: Rows, train: str, tower: bool, groups: set[str]
) -> None:
    model, trained = made_ready(case, attached, rows, train=train, train_tower=tower)
    assert set(trained.groups) == groups
    loss_of(model, rows).backward()
    parameters = dict(model.named_parameters())
    touched = {name for name, value in parameters.items() if value.grad is not None}
    # The second matrix of LoRA is zero at first, so the first one's gradient is too.
    moved = {name for name in touched if parameters[name].grad.any() or ".lora_A." in name}
    assert touched == moved == set(trained.names)
    assert trained.count == sum(parameters[name].numel() for name in trained.names)
    if train == "lora":
        linear = {
            name
            for name, module in attached.named_modules()
            if isinstance(module, nn.Linear) and ("language_model" in name or "text_model" in name)
        }
        adapted = {name.partition(".lora_")[0] for name in trained.groups["language"]}
        assert adapted == linear and linear
    if train == "full":
        # Nothing of the model is left out but what its function does not contain.
        left = {name for name in parameters if name not in trained.names}
        assert all("vision" in name or "visual" in name or "newline" in name for name in left), left


def test_the_loss_is_the_models_own_over_supervised_positions(
    case: Case, attached: Any, rows: Rows
) -> None:
    batch = collate(rows.rows)
    # Uneven rows: one answers with three words, one with one.
    batch["labels"][1, :-1] = -100
    seen = []
    hook = attached.get_output_embeddings().register_forward_hook(
        lambda head, args, output: seen.append(output.shape[:-1].numel())
    )
    head = SupervisedHead(attached)
    with torch.no_grad():
        ours = supervised_loss(attached, head, batch)
        head.remove()
        own = attached(**batch).loss
    hook.remove()
    assert_near(ours / 4, own)
    assert seen == [4, batch["input_ids"].numel()]


def test_a_row_without_an_image_gives_connector_and_projector_gradients_of_zero(
    case: Case, attached: Any, rows: Rows
) -> None:
    model, trained = made_ready(case, attached, rows, train="projector")
    blind = make_rows(case.tiny, model, 2, images=0)
    parameters = dict(model.named_parameters())
    loss = loss_of(model, blind)
    (loss + zero_of([parameters[name] for name in trained.names])).backward()
    for name in trained.names:
        assert parameters[name].grad is not None and not parameters[name].grad.any()


def test_frozen_parts_stay_out_of_train_mode(case: Case, attached: Any, rows: Rows) -> None:
    model, _ = made_ready(case, attached, rows, train="projector")
    model.train()
    for module in frozen_modules(model, case.plan):
        module.training = False
    training = [name for name, module in model.named_modules() if module.training]
    trained = [name for name, module in model.named_modules() if _learns(module)]
    assert set(trained) <= set(training)
    assert not [name for name in training if ".layers." in name or ".blocks." in name]


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def test_groups_come_in_the_order_they_are_told(case: Case, attached: Any, rows: Rows) -> None:
    _, trained = made_ready(case, attached, rows, train="full")
    assert list(trained.groups) == [name for name in GROUPS if name in trained.groups]
    assert trained.group_of("dense_connector.weight") == "connector"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("llava") / "model"
    return make_case(contract("llava.TestClip").tiny(folder, 1), Connector("dci"))


def test_trained_parameters_become_fp32_and_the_others_keep_their_dtype(llava: Case) -> None:
    model = llava.attached(dtype=torch.bfloat16)
    trained = choose(model, llava.plan, TrainingSettings(train="projector"))
    freeze(model, trained)
    kinds = {name: value.dtype for name, value in model.named_parameters()}
    assert {kinds.pop(name) for name in trained.names} == {torch.float32}
    assert set(kinds.values()) == {torch.bfloat16}


def test_a_connector_without_a_matrix_cannot_be_trained_alone(tmp_path: Path) -> None:
    tiny = contract("llava.TestClip").tiny(tmp_path / "model", 1)
    case = make_case(tiny, Connector("sti", layers=((1,),), form="delta"))
    with pytest.raises(TrainingError, match="sti connector has no parameters") as caught:
        choose(case.attached(), case.plan, TrainingSettings(train="connector"))
    assert "--train projector" in caught.value.hint


def test_a_tower_no_image_reaches_is_refused(llava: Case) -> None:
    model = llava.attached()
    feed = Feed(make_rows(llava.tiny, model, 2, images=0), collate)
    settings = TrainingSettings(train_tower=True).resolved()
    with pytest.raises(TrainingError, match="no row with an image"):
        prepare(model, llava.plan, feed, settings)


def test_the_pattern_of_adapters_fits_other_versions_paths(llava: Case) -> None:
    pattern = lora_targets(llava.plain())
    assert re.fullmatch(pattern, "model.language_model.layers.0.self_attn.q_proj")
    assert re.fullmatch(pattern, "language_model.model.layers.1.mlp.down_proj")
    assert not re.fullmatch(pattern, "language_model.lm_head")
    assert not re.fullmatch(pattern, "model.vision_tower.encoder.layers.0.self_attn.q_proj")
    assert not re.fullmatch(pattern, "model.multi_modal_projector.linear_1")
