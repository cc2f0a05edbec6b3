"""The card: true numbers only, other people's words kept, metadata merged."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest
from huggingface_hub import ModelCard

from dcsurgery.errors import PublishError
from dcsurgery.publishing.base import PublicBase
from dcsurgery.publishing.card import CardFacts, write_card
from dcsurgery.publishing.changes import local_files
from dcsurgery.publishing.documents import all_evaluations, make_documents, public_plan
from dcsurgery.publishing.formula import write_formula
from dcsurgery.publishing.picture import draw_wiring
from dcsurgery.publishing.privacy import without_paths
from dcsurgery.surgery.convert import plan_conversion
from dcsurgery.surgery.delta_readme import BEGIN, END
from dcsurgery.surgery.plan_file import DELTA_FOLDER, PLAN_FILE, AdapterRecord
from dcsurgery.verification.report import Check, Report
from tests.publishing.numbers import unheld
from tests.publishing.reports import TRAINED, evaluation


@pytest.fixture(scope="module")
def facts(tiny_clip: Path) -> CardFacts:
    plan = plan_conversion(tiny_clip, form="delta").plan
    plan = plan.model_copy(update={"training": [TRAINED]})
    checks = (Check("features", True, "max difference 3.25e-06", "1e-05 x 4.98"),)
    report = Report("me/model", "org/base", "delta", checks).to_dict()
    base = PublicBase("org/base", "c0ffee", card="---\nlicense: llama2\nlanguage: en\n---\n")
    return CardFacts(
        "me/model", "main", plan, base, {"license": "llama2"}, report,
        all_evaluations([evaluation(), evaluation("loss", 1.2345)], {}), "https://hub",
    )  # fmt: skip


def held(facts: CardFacts) -> list[str]:
    """The texts of all reports a card may draw on."""
    reports = [report.model_dump_json() for _, report in facts.evaluations]
    return [facts.plan.model_dump_json(), json.dumps(facts.report), *reports]


def test_every_number_is_held_by_a_report(facts: CardFacts) -> None:
    card = write_card(facts, None)
    assert unheld(card, held(facts)) == set()
    # The check itself sees a number nobody holds, in prose, tables and metadata.
    wrong = card.replace("0.6235", "0.6236").replace("99 steps", "98 steps")
    wrong = wrong.replace("value: 1.2345", "value: 1.2346")
    assert unheld(wrong, held(facts)) == {"0.6236", "98", "1.2346"}
    assert unheld(card, held(replace(facts, report=None))) == {"3.25e-06", "1e-05", "4.98"}


def test_a_card_tells_what_was_done(facts: CardFacts) -> None:
    card = write_card(facts, None)
    for told in (
        "| upgraded | all | 500 | 0.6235 [0.5987, 0.6512] |",
        "| upgraded | count | 77 | 0.4321 [0.35, 0.51] | 0.03457 [0.011, 0.0567] | 0.00321 |",
        "LoRA adapters of the language model (1,234,567 parameters)",
        "| data | me/rows, 4,321 rows, 7 skipped |", "| loss | 2.718 at first, 1.414 at last |",
        "| lr | 2e-05 |", "| passed | features | max difference 3.25e-06 | 1e-05 x 4.98 |",
        'dcsurgery.load("me/model")', 'AutoProcessor.from_pretrained("org/base")',
        "@inproceedings{yao2024dense", "2405.13800", "[org/base](https://hub/org/base)",
    ):  # fmt: skip
        assert told in card, told
    assert "| stage |" not in card


def test_a_card_tells_what_was_lost_and_what_was_not_trained(facts: CardFacts) -> None:
    assert "| lost |" not in write_card(facts, None)
    update = {
        "cut_rows": 31, "cut_answers": 17, "dropped": {"system turn": 53},
        "untouched": ["dense_connector.weight"], "settings": {"max_length": 2048},
    }  # fmt: skip
    plan = facts.plan.model_copy(update={"training": [TRAINED.model_copy(update=update)]})
    told = replace(facts, plan=plan)
    assert (
        "| lost | 31 rows cut to --max-length 2048, 17 of them inside an answer; 53 rows: the "
        "system turn is left out of the prompt, or changed; never had a gradient: "
        "dense_connector.weight |"
    ) in write_card(told, None)
    assert unheld(write_card(told, None), held(told)) == set()


def test_the_metadata_is_what_the_hub_reads(facts: CardFacts) -> None:
    data = ModelCard(write_card(facts, None)).data
    assert (data.license, data.language, data.base_model) == ("llama2", "en", "org/base")
    assert data.to_dict()["base_model_relation"] == "adapter"
    found = [(item.metric_type, item.metric_value, item.dataset_name) for item in data.eval_results]
    assert found == [("exact_match", 0.62345678, "me/test"), ("loss", 1.2345, "me/test")]
    url = "https://hub/me/model/blob/main/dense_connector/eval-exact-1.json"
    assert data.eval_results[0].source_url == url


THEIRS = """---
tags:
- mine
license: llama2
language: de
custom: [1, 2]
model-index:
- name: theirs
  results:
  - task: {type: other}
    dataset: {type: d, name: d}
    metrics: [{type: f1, value: 0.5}]
---

# My words

Read this first.
"""


def test_an_existing_card_is_updated_not_overwritten(facts: CardFacts) -> None:
    first = write_card(facts, THEIRS)
    edited = first.replace(END, f"{END}\n\nAnd my last words.")
    again = write_card(replace(facts, evaluations=(), report=None), edited)
    for card in (first, again):
        assert card.count(BEGIN) == card.count(END) == 1
        assert "# My words\n\nRead this first." in card.split(BEGIN)[0]
        data = ModelCard(card).data.to_dict()
        assert data["tags"] == ["mine", "dense-connector", "dcsurgery", "dci"]
        assert (data["language"], data["custom"]) == ("de", [1, 2])
        assert data["model-index"][0]["name"] == "theirs"
        assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert again.rstrip().endswith("And my last words.")
    assert len(ModelCard(first).data.eval_results) == 3
    assert len(ModelCard(again).data.eval_results) == 1
    assert "Not verified" in again and "0.6235" not in again
    assert write_card(facts, first) == first


@pytest.mark.parametrize("block", ["a: [", "- 1", "model-index: 3\n", "model-index: [{}]"])
def test_metadata_nobody_can_read_is_refused_not_dropped(facts: CardFacts, block: str) -> None:
    with pytest.raises(PublishError) as caught:
        write_card(replace(facts, evaluations=()), f"---\n{block}\n---\n# Hi\n")
    assert "--overwrite-card" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, "y = W x + D1 mean(h[0, 1]) + D2 mean(h[2, 3])"),
        ({"connector": "sci", "layers": "1,2"}, "y = W x + D1 h[1] + D2 h[2]"),
        ({"connector": "sci", "layers": "1", "norm": True}, "y = W x + D1 norm(h[1])"),
        ({"connector": "mix"}, "y = W x + D1 mix(h[0, 1]) + D2 mix(h[2, 3])"),
        (
            {"connector": "sti", "layers": "1"},
            "tokens = [x, average of 8 tokens(h[1])]\ny = W tokens",
        ),
        ({"groups": 1, "pool": 2}, "mean(h[0..3])\nthen both sides of the token grid are divided"),
    ],
)
def test_the_formula_is_that_of_the_connector(
    tiny_clip: Path, options: dict[str, Any], lines: str
) -> None:
    plan = plan_conversion(tiny_clip, **{"form": "delta", **options}).plan
    formula = write_formula(plan)
    assert formula.startswith("x = h[3]\n") and lines in formula
    picture = draw_wiring(plan)
    assert picture.startswith(b"\x89PNG") and picture == draw_wiring(plan)


def test_evaluations_of_the_same_weights_stay_until_measured_anew() -> None:
    old = {
        "dense_connector/eval-exact-1.json": evaluation().model_dump_json(),
        "dense_connector/eval-exact-2.json": evaluation(data="cd" * 32).model_dump_json(),
    }
    found = all_evaluations([evaluation(mean=0.7)], old)
    assert [(path[-12:], report.models[-1].score.mean) for path, report in found] == [
        ("exact-1.json", 0.62345678), ("exact-2.json", 0.7),
    ]  # fmt: skip
    assert found[0][1].data_sha256 == "cd" * 32


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/my data/test.json", "test.json"),
        ("read /home/me/x.json twice", "read x.json twice"),
        ("~/data/test.json", "test.json"),
        ("file:///srv/data/x", "x"),
        (r"C:\Users\me\x.json", "x.json"),
        ("org/name", "org/name"),
        ("https://hub.co/a/b", "https://hub.co/a/b"),
        ("3 of 4 / 5", "3 of 4 / 5"),
        ("model.layers.0", "model.layers.0"),
    ],
)
def test_folders_of_this_machine_are_cut_from_what_is_published(given: str, kept: str) -> None:
    assert without_paths({"a": [given], given: 1}) == {"a": [kept], kept: 1}


def test_an_adapter_s_config_names_the_base_by_its_id_and_keeps_its_digest(
    facts: CardFacts, tmp_path: Path
) -> None:
    config = tmp_path / "dense_connector/lora/adapter_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"r": 8, "base_model_name_or_path": str(tmp_path / "base")}))
    weights = config.with_name("adapter_model.safetensors")
    weights.write_bytes(b"weights")
    stated = {path.name: sha256(path.read_bytes()).hexdigest() for path in (config, weights)}
    stated[weights.name] = "another"
    adapter = AdapterRecord(files=stated, targets={})
    plan = facts.plan.model_copy(update={"adapter": adapter})
    documents = make_documents(local_files(tmp_path), replace(facts, plan=plan), None)
    published = documents["dense_connector/lora/adapter_config.json"].source
    assert isinstance(published, bytes)
    assert json.loads(published) == {"r": 8, "base_model_name_or_path": "org/base"}
    files = json.loads(cast(bytes, documents[PLAN_FILE].source))["adapter"]["files"]
    assert files[config.name] == sha256(published).hexdigest()
    # What was not rewritten is not blessed: verify has to find it.
    assert files[weights.name] == "another"


def test_the_published_plan_has_no_folder_of_this_machine(facts: CardFacts) -> None:
    images = {"images": "/home/me/coco", "lr": 0.5}
    training = TRAINED.model_copy(update={"data": "/home/me/rows.json", "settings": images})
    kept = facts.plan.base.model_copy(update={"id": "/home/me/base", "folder": "/home/me/base"})
    plan = facts.plan.model_copy(update={"training": [training], "base": kept})
    assert "/home/me" in plan.model_dump_json()
    for base, name in ((facts.base, "org/base"), (PublicBase(), "base")):
        published = public_plan(plan, base)
        assert "/home/me" not in published.model_dump_json()
        assert (published.base.id, published.base.folder) == (name, None)
        assert published.training[0].data == "rows.json"
        assert published.training[0].settings == {"images": "coco", "lr": 0.5}


def test_the_published_log_has_no_folder_of_this_machine(facts: CardFacts, tmp_path: Path) -> None:
    log = tmp_path / DELTA_FOLDER / "bad_rows.jsonl"
    log.parent.mkdir()
    good = '{"row": 1,  "id": "b", "reason": "it has no answer"}'
    bad = {"row": 0, "id": "a", "reason": "image /home/me/secret/a.png does not exist"}
    log.write_text(f"{json.dumps(bad)}\n{good}\n")
    documents = make_documents(local_files(tmp_path), facts, None)
    published = documents[f"{DELTA_FOLDER}/bad_rows.jsonl"].source
    assert isinstance(published, bytes)
    first, second = published.decode().splitlines()
    assert json.loads(first)["reason"] == "image a.png does not exist"
    assert second == good
