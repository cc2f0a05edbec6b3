"""`push --require`: what a trial did not show is refused, and the card tells it either way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.errors import DcSurgeryError, PublishError, RequestError
from dcsurgery.evaluation.trial_report import TrialReport
from dcsurgery.publishing.base import PublicBase
from dcsurgery.publishing.card import CardFacts, write_card
from dcsurgery.publishing.documents import make_documents
from dcsurgery.publishing.push import push_checkpoint
from dcsurgery.publishing.tried import TRIAL_FILE, require_trial, standing_trial
from dcsurgery.surgery.convert import plan_conversion
from dcsurgery.surgery.plan_file import SurgeryPlan
from tests.publishing.numbers import unheld
from tests.publishing.reports import TRAINED
from tests.trials.reports import SHA, arm, gain, trial_of


@pytest.fixture(scope="module")
def plan(tiny_clip: Path) -> SurgeryPlan:
    """The plan of a delta that was trained as the trial's arms were."""
    found = plan_conversion(tiny_clip, form="delta").plan
    trained = TRAINED.model_copy(update={"data_sha256": SHA, "settings": {"lr": 2e-5}})
    return found.model_copy(update={"training": [trained]})


def written(folder: Path, report: TrialReport) -> Path:
    path = folder / "trial.json"
    path.write_text(report.model_dump_json())
    return path


def test_a_model_that_beats_its_control_may_go(plan: SurgeryPlan, tmp_path: Path) -> None:
    relies_on = dict.fromkeys(plan.relies_on, SHA)
    report = trial_of(plan, projector_sha256=relies_on)
    pushed = plan.model_copy(update={"relies_on": relies_on})
    tried = require_trial(written(tmp_path, report), pushed)
    assert tried.arm == "dci" and tried.notes == ()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"found": gain(0.01, -0.01, 0.03)}, "dci does not beat its control: +0.0100 [-0.0100"),
        ({"found": gain(-0.05, -0.07, -0.03)}, "does not beat its control"),
        ({"found": gain(0.05, 0.03, 0.07, [0.11, -0.01])}, "with every seed"),
        ({"lost": ["colour", "size"]}, "loses on colour, size"),
        ({"decision": "do not", "verdict": "do not: below"}, "dci is advised against: do not: be"),
    ],
)
def test_what_is_not_shown_is_refused_unless_told_otherwise(
    plan: SurgeryPlan, tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    path = written(tmp_path, trial_of(plan, **fields))
    with pytest.raises(PublishError) as found:
        require_trial(path, plan)
    assert told in found.value.message and "nothing was committed" in found.value.message
    assert "--require-anyway" in found.value.hint
    assert require_trial(path, plan, anyway=True).arm == "dci"


def test_an_arm_below_the_base_is_refused_judged_or_not(plan: SurgeryPlan, tmp_path: Path) -> None:
    report = trial_of(plan, judged="chosen")
    (versus,) = report.comparisons
    below = versus.model_copy(update={"against": "base", "gain": gain(-0.05, -0.07, -0.03)})
    report = report.model_copy(update={"comparisons": [versus, below]})
    with pytest.raises(PublishError, match=r"dci is below the base after this training, by 0\.05"):
        require_trial(written(tmp_path, report), plan)


def test_what_does_not_beat_its_size_goes_with_a_note(plan: SurgeryPlan, tmp_path: Path) -> None:
    report = trial_of(plan, decision="not shown", verdict="not shown: made up")
    tried = require_trial(written(tmp_path, report), plan)
    assert tried.notes == ("the trial's decision about dci is 'not shown'",)


def test_a_trial_of_something_else_is_refused_in_any_case(
    plan: SurgeryPlan, tiny_siglip: Path, tmp_path: Path
) -> None:
    other = plan_conversion(tiny_siglip, form="delta").plan
    three = plan_conversion(Path(str(plan.base.folder)), form="delta", groups=3).plan
    untrained = plan.model_copy(update={"training": []})
    trained = {"training": plan.training}
    (name, *_) = plan.relies_on
    normed = plan.model_copy(update={"layout": replace(plan.layout, normed=True)})
    cases = [
        (trial_of(other), plan, "trial of another model"),
        (trial_of(plan, projector_sha256={name: "0" * 64}), plan, "trial of another model"),
        (trial_of(three.model_copy(update=trained)), plan, "of other connectors (control, dci)"),
        (trial_of(plan), normed, "of other connectors"),
        (trial_of(plan), untrained, "never trained"),
        (trial_of(plan, comparisons=[]), plan, "without a control"),
    ]
    for report, pushed, told in cases:
        with pytest.raises(PublishError) as found:
            require_trial(written(tmp_path, report), pushed, anyway=True)
        assert told in found.value.message


@pytest.mark.parametrize("text", [None, "", "{}", "[1]"])
def test_a_file_that_is_no_trial_is_refused(
    plan: SurgeryPlan, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "trial.json").write_text(text)
    with pytest.raises(RequestError, match=r"trial\.json") as found:
        require_trial(tmp_path / "trial.json", plan)
    assert "dcsurgery trial" in found.value.hint


def test_what_differs_from_the_trial_is_said(plan: SurgeryPlan, tmp_path: Path) -> None:
    last = plan.training[0].model_copy(update={"data_sha256": "0" * 64, "settings": {"lr": 1e-3}})
    other = plan.model_copy(update={"training": [*plan.training, last]})
    tried = require_trial(written(tmp_path, trial_of(plan)), other)
    assert tried.notes == (
        "the trial is of one training, this model has 2",
        "the trial trained on other data than this model",
        "the trial trained with other settings: lr",
    )


def test_a_model_of_the_trial_itself_is_known_by_its_weights(
    plan: SurgeryPlan, tmp_path: Path
) -> None:
    delta = [item.model_copy(update={"sha256": SHA}) for item in plan.delta]
    other = plan.training[0].model_copy(update={"settings": {"lr": 1e-3}})
    mine = plan.model_copy(update={"delta": delta, "training": [other]})
    assert require_trial(written(tmp_path, trial_of(plan)), mine).notes == ()


def test_the_card_shows_the_table_either_way(plan: SurgeryPlan, tmp_path: Path) -> None:
    report = trial_of(plan, gain(0.01, -0.01, 0.03), verdict="not shown: made up")
    tried = require_trial(written(tmp_path, report), plan, anyway=True)
    facts = CardFacts("me/model", "main", plan, PublicBase("org/base"), tried=tried)
    card = write_card(facts, None)
    for words in ("## The trial", "not shown: made up", "| colour | 500 | +0.01 [-0.01, "
                  "+0.03] |", "its arm `dci`", "2 seeds", TRIAL_FILE):  # fmt: skip
        assert words in card, words
    held = [plan.model_dump_json(), tried.report.model_dump_json()]
    section = card.partition("## The trial")[2].partition("\n## ")[0]
    assert unheld(section, held) == set()
    assert "/home/me" not in card


def test_rows_of_the_test_and_folders_stay_here(plan: SurgeryPlan, tmp_path: Path) -> None:
    tried = require_trial(written(tmp_path, trial_of(plan)), plan)
    facts = CardFacts("me/model", "main", plan, PublicBase("org/base"), tried=tried)
    source = make_documents({}, facts, None)[TRIAL_FILE].source
    assert isinstance(source, bytes)
    assert b"secret" not in source and b"/home/me" not in source and b'"won": 9' in source
    # A later push of the same weights keeps it, one of another connector does not.
    again = standing_trial(source.decode(), plan)
    assert again is not None and again.report == tried.report
    three = plan_conversion(Path(str(plan.base.folder)), form="delta", groups=3).plan
    assert standing_trial(source.decode(), three) is None
    assert standing_trial("{}", plan) is None


def test_the_chosen_arm_is_told_from_dcis(plan: SurgeryPlan, tmp_path: Path) -> None:
    report = trial_of(plan)
    chosen = arm("chosen", plan, [[0], [2]])
    better = report.comparisons[0].model_copy(update={"arm": "chosen"})
    report = report.model_copy(
        update={"arms": [*report.arms, chosen], "comparisons": [better, *report.comparisons]}
    )
    assert require_trial(written(tmp_path, report), plan).arm == "dci"


def test_it_is_asked_before_anything_else(
    plan: SurgeryPlan, tiny_clip: Path, tmp_path: Path
) -> None:
    """No Hub is asked and nothing verified: there is no token here."""
    import dcsurgery

    dcsurgery.convert(tiny_clip, tmp_path / "delta", form="delta")
    path = written(tmp_path, trial_of(plan))
    for options, told in (({"require": path}, "never trained"),
                          ({"require_anyway": True}, "no trial to pass over")):  # fmt: skip
        with pytest.raises(DcSurgeryError, match=told):
            push_checkpoint(tmp_path / "delta", "me/model", **options)
