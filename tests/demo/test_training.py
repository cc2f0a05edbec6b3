"""Pre-training makes what the demo ships, and every arm is trained on the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dcsurgery.demo.arms import ARMS
from dcsurgery.demo.checkpoints import embedded, unpack, write_baseline
from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.outcome import Outcome
from dcsurgery.demo.questions import KINDS
from dcsurgery.demo.rows import exam_rows, said
from dcsurgery.demo.training import run_arm, run_once
from dcsurgery.loading.load import load_model, load_stock
from dcsurgery.surgery.inspection import inspect_checkpoint
from dcsurgery.surgery.plan_file import read_plan
from dcsurgery.verification import verify_checkpoint
from tests.demo.full.base import assemble, train_base
from tests.demo.full.language import train_language
from tests.demo.full.pretrain import ensure_language, hub_named
from tests.demo.full.tower import train_tower

pytestmark = pytest.mark.slow

SHORT = Exercise(
    steps=3, batch_size=8, train_scenes=10, val_scenes=1, test_scenes=2, looks=(1, 2),
    rates={"connector_lr": 1e-2, "projector_lr": 1e-2, "warmup": 0.0},
)  # fmt: skip
TRAINED = [name for name, arm in ARMS.items() if arm.trained]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(embedded()[0], tmp_path_factory.mktemp("bases") / "tiny-llava-1")


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Outcome]]:
    work = tmp_path_factory.mktemp("arms")
    return work, {name: run_once(base, name, 7, SHORT, work / name) for name in ARMS}


def test_arms_see_the_same_batches_and_make_the_same_steps(
    runs: tuple[Path, dict[str, Outcome]],
) -> None:
    _, outcomes = runs
    assert len({outcomes[name].data_sha256 for name in TRAINED}) == 1
    assert {outcomes[name].steps for name in TRAINED} == {3}
    assert {tuple(outcomes[name].curve) for name in TRAINED} == {(0, 1, 2, 3)}
    assert {tuple(item.kinds) for item in outcomes.values()} == {(*KINDS, *KINDS)}
    assert outcomes["base"].data_sha256 is None and outcomes["base"].steps == 0


def test_other_seeds_see_other_batches(base: Path, tmp_path: Path) -> None:
    short = SHORT.model_copy(update={"steps": 1})
    found = [run_arm(base, ARMS["control"], s, short, tmp_path / str(s)) for s in (1, 2)]
    assert found[0].data_sha256 != found[1].data_sha256


def test_all_but_the_random_start_begin_bit_for_bit_as_the_base(
    runs: tuple[Path, dict[str, Outcome]],
) -> None:
    _, outcomes = runs
    same = {name: item.starts_as_base for name, item in outcomes.items()}
    assert same == {name: name != "random" for name in ARMS}
    starts = {name: item.curve[0] for name, item in outcomes.items() if name != "random"}
    assert len(set(starts.values())) == 1


def test_the_control_trains_the_projector_alone(
    base: Path, runs: tuple[Path, dict[str, Outcome]]
) -> None:
    work, outcomes = runs
    before = dict(load_stock(base, dtype=torch.float32).named_parameters())
    for name in TRAINED:
        after = load_model(work / name / "trained", dtype=torch.float32)
        changed = {
            key
            for key, value in after.named_parameters()
            if key in before and not torch.equal(value, before[key])
        }
        assert changed == {key for key in before if "multi_modal_projector" in key}
        held = name == "control"
        assert (after.dense_connector.weight.abs().max() == 0) == held
        assert (sum(outcomes[name].used) == 0) == held
    layouts = {name: read_plan(work / name / "trained").layout.groups for name in TRAINED}
    assert layouts["repeated"] == ((7,), (7,)) and layouts["retrofit"] == layouts["control"]
    shapes = {name: read_plan(work / name / "trained").delta[0].shape for name in TRAINED}
    assert len({tuple(shape) for shape in shapes.values()}) == 1


def test_what_is_written_answers_as_the_outcome_says(
    runs: tuple[Path, dict[str, Outcome]],
) -> None:
    work, outcomes = runs
    exam = exam_rows(SHORT.test_seed, "test", SHORT.test_scenes)
    model = load_model(work / "retrofit" / "trained", dtype=torch.float32)
    assert said(model, exam).tolist() == outcomes["retrofit"].answers
    right = [a == b for a, b in zip(outcomes["retrofit"].answers, exam.tokens.answer, strict=True)]
    assert outcomes["retrofit"].right == right
    assert read_plan(work / "retrofit" / "trained").training[0].steps == 3


def test_a_finished_arm_is_read_not_run_again(
    base: Path, runs: tuple[Path, dict[str, Outcome]]
) -> None:
    work, outcomes = runs
    again = run_once(Path("nowhere"), "retrofit", 7, SHORT, work / "retrofit")
    assert again == outcomes["retrofit"]


def test_a_language_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def short(seed: int) -> tuple[object, float]:
        seeds.append(seed)
        return train_language(seed, steps=1, cycles=1)

    monkeypatch.setattr("tests.demo.full.language.train_language", short)
    for _ in range(2):
        ensure_language(5, tmp_path / "language")
    assert seeds == [5] and [path.name for path in tmp_path.iterdir()] == ["language"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "language").state_dict()
    expected = train_language(5, steps=1, cycles=1)[0].state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items())


def test_pretraining_makes_a_model_that_can_be_operated_on(tmp_path: Path) -> None:
    tower, _ = train_tower(1, steps=2, asked=20)
    language, _ = train_language(1, steps=2, cycles=2)
    model, share = train_base(1, tower, language, stages=((1, 1e-3), (1, 1e-3)), asked=20)
    assert 0 <= share <= 1
    folder = write_baseline(tmp_path / "base", hub_named(model.state_dict()), "float32")
    loaded = load_stock(folder)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, value in tower.state_dict().items():
        assert torch.equal(state[f"model.vision_tower.{name}"], value)
    untouched = assemble(tower, language).lm_head.weight
    assert not torch.equal(untouched, state["lm_head.weight"])
    assert type(loaded).__name__ == "LlavaForConditionalGeneration"


@pytest.mark.parametrize("folder", embedded(), ids=lambda path: path.name)
def test_embedded_models_are_plain_checkpoints_that_see(folder: Path) -> None:
    anatomy = inspect_checkpoint(folder).anatomy
    assert (anatomy.tower.kind, anatomy.tower.depth, anatomy.feature_layer) == (
        "clip_vision_model",
        8,
        7,
    )
    exam = exam_rows(1, "val", 20)
    model = load_stock(folder, dtype=torch.float32)
    assert (said(model, exam) == exam.tokens.answer).mean() > 0.5


def test_an_embedded_model_converts_and_verifies_as_it_is_stored(tmp_path: Path) -> None:
    from dcsurgery.surgery.convert import convert_checkpoint

    convert_checkpoint(embedded()[0], tmp_path / "out")
    assert verify_checkpoint(tmp_path / "out").passed
