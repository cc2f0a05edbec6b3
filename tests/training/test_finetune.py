"""From a model and a data file to OUT: what is in it, what is refused, what an end leaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import dcsurgery
from dcsurgery.checkpoint.written import strangers
from dcsurgery.data.batches import TrainingDataset
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import Prompter
from dcsurgery.data.rows import Rows, read_rows
from dcsurgery.errors import DcSurgeryError, OutputExistsError, RequestError, TrainingError
from dcsurgery.loading.load import load_model
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE, read_plan
from dcsurgery.training import finetune
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.training.finetuned import Finetuned
from dcsurgery.training.job import Request
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.start import start
from dcsurgery.training.workspace import MARK
from dcsurgery.verification import verify_checkpoint
from tests.surgery import digests
from tests.training.data import write_data

FAST: dict[str, Any] = {
    "batch_size": 4, "micro_batch": 2, "max_steps": 4, "connector_lr": 1e-2, "projector_lr": 1e-3,
    "lora_rank": 2, "lora_alpha": 4, "save_steps": 2,
}  # fmt: skip


def fast(**values: Any) -> TrainingSettings:
    return TrainingSettings(**{**FAST, **values})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    return write_data(place / "data")


@pytest.fixture(scope="module")
def delta(tiny_siglip: Path, place: Path) -> Path:
    convert_checkpoint(tiny_siglip, place / "delta", form="delta")
    return place / "delta"


@pytest.fixture(scope="module")
def once(delta: Path, data: Path, place: Path) -> Finetuned:
    """A training of connector and projector that nothing came in between."""
    return finetune_connector(delta, data, place / "once", settings=fast())


def test_pictures_of_a_stream_cannot_be_raw(
    delta: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Rows("stream", iter([]), root=None)
    monkeypatch.setattr("dcsurgery.training.job.read_rows", lambda *_, **__: stream)
    with pytest.raises(RequestError, match="arrive turned") as caught:
        finetune_connector(delta, "d", place / "raw", settings=fast(orientation="raw"))
    assert "--streaming" in caught.value.hint


def test_out_has_what_was_trained_and_says_how(once: Finetuned, delta: Path, place: Path) -> None:
    plan = read_plan(once.output)
    before = read_plan(delta)
    (record,) = plan.training
    assert plan.form == "delta" and once.conversion is not None and once.conversion.plan == plan
    assert {item.name for item in plan.delta} == set(record.trained)
    assert set(record.trained) == {
        "dense_connector.weight",
        *(
            f"multi_modal_projector.linear_{i}.{kind}"
            for i in (1, 2)
            for kind in ("weight", "bias")
        ),
    }
    assert (record.train, record.rows, record.skipped_rows) == ("projector", 8, 0)
    assert (record.steps, record.epochs, record.batch_size) == (4, 2.0, 4)
    assert record.settings["connector_lr"] == 1e-2 and record.versions["torch"]
    assert record.settings["orientation"] == "exif"
    assert record.first_loss == once.result.history[0]["loss"] != record.last_loss
    assert plan.model_dump(exclude={"delta", "training", "notes"}) == before.model_dump(
        exclude={"delta", "training", "notes"}
    )
    names = {path.name for path in (once.output / "dense_connector").iterdir()}
    assert names == {"model.safetensors", "plan.json", "training.jsonl", "training.png"}
    assert not (place / "once.training").exists()


def test_out_computes_what_the_training_ended_with(
    once: Finetuned, data: Path, place: Path
) -> None:
    """The loss of a further training's first batch is that of the loaded OUT."""
    again = finetune_connector(once.output, data, settings=fast(), dry_run=True)
    assert again.trained.groups == once.result.trained.groups
    model = load_model(once.output)
    begun = start(Request(once.output, "", fast()))
    pairs = zip(model.parameters(), begun.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_verify_proves_that_only_the_trained_tensors_changed(once: Finetuned) -> None:
    report = dcsurgery.verify(once.output)
    assert report.passed, [check for check in report.checks if not check.passed]


def test_an_interrupted_training_leaves_no_out_and_resumes_to_the_same_bytes(
    once: Finetuned, delta: Path, data: Path, place: Path
) -> None:
    def interrupt(step: int, steps: int, words: str) -> None:
        assert steps == 4 and words.startswith("loss ") and words.endswith(" tokens/s")
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    out = place / "cut"
    with pytest.raises(KeyboardInterrupt):
        finetune_connector(delta, data, out, settings=fast(), progress=interrupt)
    assert not out.exists() and (place / "cut.training" / "training.jsonl").is_file()
    with pytest.raises(OutputExistsError, match="stopped after step 3") as caught:
        finetune_connector(delta, data, out, settings=fast())
    assert "--resume" in caught.value.hint
    done = finetune_connector(delta, data, out, settings=fast(), resume=True)
    assert done.result.resumed_at == 3
    assert (out / DELTA_FILE).read_bytes() == (once.output / DELTA_FILE).read_bytes()
    assert done.record.first_loss == once.record.first_loss
    assert not (place / "cut.training").exists()


def test_an_output_that_cannot_be_written_keeps_the_training(
    delta: Path, data: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "write_trained", fail)
        with pytest.raises(OSError, match="No space"):
            finetune_connector(delta, data, place / "full", settings=fast())
    assert not (place / "full").exists()
    done = finetune_connector(delta, data, place / "full", settings=fast(), resume=True)
    assert done.result.resumed_at == 4 and read_plan(place / "full").training


def test_stage_two_from_an_unconverted_model_is_one_step(
    tiny_siglip: Path, data: Path, place: Path
) -> None:
    before = digests(tiny_siglip)
    values = {"stage": 2, "connector_lr": None, "projector_lr": None, "lr": 1e-3}
    done = finetune_connector(
        tiny_siglip, data, place / "stock",
        settings=TrainingSettings(**{**FAST, **values}), connector="dci",
    )  # fmt: skip
    plan = read_plan(done.output)
    assert plan.form == "stock" and plan.training[0].train == "full"
    assert done.record.last_loss < done.record.first_loss
    assert digests(tiny_siglip) == before
    model, info = AutoModelForImageTextToText.from_pretrained(
        done.output, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    assert model.config.vision_feature_layer == [0, 1, 2, 3]
    after = digests(done.output)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {name for name in before if "vision_tower" not in name}
    assert dcsurgery.verify(done.output).passed


def test_lora_on_top_of_a_first_training(once: Finetuned, data: Path, place: Path) -> None:
    settings = fast(stage=2, train="lora", connector_lr=None, projector_lr=None, lr=1e-2)
    done = finetune_connector(once.output, data, place / "lora", settings=settings)
    plan = read_plan(done.output)
    assert [record.train for record in plan.training] == ["projector", "lora"]
    assert plan.training[1].adapter == {"rank": 2, "alpha": 4, "dropout": 0.05}
    assert done.result.settings.projector_lr == 2e-5
    assert done.record.first_loss == pytest.approx(once.record.last_loss, rel=0.1)
    assert (place / "lora" / "dense_connector" / "lora" / "adapter_model.safetensors").is_file()
    names = [name for name, _ in load_model(done.output).named_parameters() if "lora" in name]
    assert len(names) == 2 * 14
    low = start(Request(done.output, "", fast(train="lora", precision="bf16"))).model
    stored = load_file(place / "lora" / "dense_connector" / "lora" / "adapter_model.safetensors")
    found = {k.replace(".default", ""): v for k, v in low.named_parameters() if ".lora_" in k}
    for name, value in stored.items():
        assert torch.equal(found[name.removeprefix("base_model.model.")], value), "not rounded"
    with pytest.raises(TrainingError, match="of rank 2, not 4"):
        finetune_connector(
            done.output, data, settings=fast(train="lora", lora_rank=4), dry_run=True
        )


def test_full_after_lora_goes_on_from_the_merged_weights(
    delta: Path, data: Path, place: Path
) -> None:
    values: dict[str, Any] = {"batch_size": 8, "micro_batch": 8, "max_steps": 2, "lora_rank": 4}
    rates = {"lr": 5e-3, "warmup": 0.0, "lora_dropout": 0.0}
    once = finetune_connector(
        delta, data, place / "adapted", settings=fast(train="lora", **values, **rates)
    )
    still = {"lr": 0.0, "connector_lr": 0.0, "projector_lr": 0.0, "lora_dropout": 0.0}
    wanted = finetune_connector(
        once.output, data, place / "still", settings=fast(train="lora", **values, **still)
    )
    full, said = fast(train="full", **values, **still), list[str]()
    planned = finetune_connector(once.output, data, settings=full, dry_run=True)
    merged = finetune_connector(
        once.output, data, place / "merged", settings=full, tell=said.append
    )
    assert once.to_dict()["merged"] == [] and "is added to" not in str(once)
    adapted = read_plan(once.output).adapter
    assert adapted is not None
    line = f"LoRA of the earlier training is added to {len(adapted.targets)} weights"
    for told in (planned, merged):
        assert len(told.to_dict()["merged"]) == len(adapted.targets)
        assert line in " ".join(str(told).split())
    assert line in said
    assert abs(once.record.first_loss - wanted.record.first_loss) > 1e-2
    for loss in (merged.record.first_loss, merged.record.last_loss):
        assert loss == pytest.approx(wanted.record.first_loss, rel=1e-5)
    plan = read_plan(merged.output)
    assert plan.adapter is None and [item.train for item in plan.training] == ["lora", "full"]
    assert not (merged.output / "dense_connector" / "lora").exists()
    # Read again from the files, the adapter's part is in them.
    again = finetune_connector(
        merged.output, data, place / "again", settings=fast(**values, **still)
    )
    assert again.record.first_loss == pytest.approx(wanted.record.first_loss, rel=1e-5)
    assert verify_checkpoint(merged.output).passed


@pytest.mark.parametrize("train", ["projector", "lora"])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_language_model_in_few_bits_is_trained_on_the_cpu(
    delta: Path, data: Path, place: Path, bits: Any, train: Any
) -> None:
    pytest.importorskip("bitsandbytes")
    settings = fast(train=train, quantize=bits, max_steps=6, lr=1e-3)
    done = finetune_connector(delta, data, place / f"{bits}-{train}", settings=settings)
    assert done.record.last_loss < done.record.first_loss and not done.result.untouched
    model = start(Request(done.output, "", settings)).model
    few = {n for n, value in model.named_parameters() if not value.is_floating_point()}
    assert few and all(".language_model.layers." in name for name in few)
    assert verify_checkpoint(done.output).passed


def test_a_preview_measures_and_writes_nothing(delta: Path, data: Path, place: Path) -> None:
    before = sorted(place.iterdir())
    preview = finetune_connector(
        delta, data, place / "never", settings=fast(max_steps=None), dry_run=True
    )
    assert sorted(place.iterdir()) == before
    assert (preview.steps, preview.rows, preview.batch) == (2, 8, (2, 2, 1))
    count = preview.trained.count
    assert preview.estimate.gradients == 4 * count and preview.estimate.optimizer == 8 * count
    assert preview.estimate.activations > 0 and preview.estimate.seconds_per_step > 0
    first = preview.samples[0]
    assert len(preview.samples) == 3 and first.id == "row-0"
    assert [text for text, marked in first.pieces if marked] == [" red</s>"]


def test_rows_of_text_alone_keep_to_themselves_when_rows_are_grouped(
    delta: Path, data: Path
) -> None:
    dataset = TrainingDataset(read_rows(data), Prompter(load_processor(delta)))
    assert [length < 0 for length in dataset.lengths] == [False] * 7 + [True]


def test_bad_rows_are_named_and_left_out(delta: Path, data: Path, place: Path) -> None:
    rows = json.loads(data.read_text())
    rows[2]["image"] = "gone.png"
    broken = data.with_name("broken.json")
    broken.write_text(json.dumps(rows))
    preview = finetune_connector(delta, broken, settings=fast(max_bad="20%"), dry_run=True)
    assert [bad.id for bad in preview.bad] == ["row-2"] and preview.rows == 7
    with pytest.raises(RequestError, match="1 of 8 rows cannot be used"):
        finetune_connector(delta, broken, settings=fast(), dry_run=True)


def test_what_is_trained_starts_from_the_stored_values_whatever_the_base_is_loaded_in(
    once: Finetuned,
) -> None:
    exact = start(Request(once.output, "", fast()))
    low = start(Request(once.output, "", fast(precision="bf16")))
    wanted = dict(exact.model.named_parameters())
    kinds = {}
    for name, value in low.model.named_parameters():
        kinds[name] = value.dtype
        if name in once.result.trained.names:
            assert torch.equal(value, wanted[name])
    assert kinds["lm_head.weight"] == torch.bfloat16
    whole = start(Request(once.output, "", fast(precision="bf16", train="full")))
    assert {value.dtype for value in whole.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "base"}, "has no dense connector yet"),
        ({"connector": "dci"}, "has a dci connector already"),
        ({"output": "data"}, "is not empty"),
        ({"data": "gone.json"}, "gone.json"),
        ({"resume": True, "overwrite": True}, "--resume goes on"),
        ({"settings": fast(quantize="4bit")}, "needs the package bitsandbytes"),
        ({"settings": fast(quantize="4bit", train="full")}, "cannot be trained"),
        ({"output": "foreign"}, "dcsurgery did not make it"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    delta: Path, data: Path, tiny_siglip: Path, place: Path, change: dict[str, Any], words: str
) -> None:
    (place / "foreign.training").mkdir(exist_ok=True)
    (place / "foreign.training" / "mine").touch()
    before = sorted(place.iterdir())
    values: dict[str, Any] = {"model": delta, "data": data, "output": "new", **change}
    if values["model"] == "base":
        values["model"] = tiny_siglip
    values["output"] = place / values["output"]
    model, source, output = (values.pop(name) for name in ("model", "data", "output"))
    with pytest.raises(DcSurgeryError) as caught:
        finetune_connector(model, source, output, **{"settings": fast(), **values})
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize("name", ["notes.txt", "checkpoint-2/notes.txt", "mine/a", "checkpoint-9/"])
def test_notes_in_a_workspace_are_kept(name: str, delta: Path, data: Path, place: Path) -> None:
    output = place / f"noted-{Path(name).name}-{Path(name).parent.name}"
    workspace = output.with_name(output.name + ".training")
    stopped = fast(max_steps=4, save_steps=1)

    def stop(step: int, steps: int, words: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_connector(delta, data, output, settings=stopped, progress=stop)
    note = workspace / name
    if name.endswith("/"):
        note.mkdir()
    else:
        note.parent.mkdir(exist_ok=True)
        note.write_text("mine")
    if name != "checkpoint-9/":  # an empty folder of our own kind is ours
        with pytest.raises(OutputExistsError, match=r"did not write: (notes|checkpoint-2/n|mine/)"):
            finetune_connector(delta, data, output, settings=stopped, overwrite=True)
    # Going on, and ending, removes what is ours and leaves the note.
    finetune_connector(delta, data, output, settings=stopped, resume=True)
    if name == "checkpoint-9/":
        assert not workspace.exists()
    else:
        found = [path for path in workspace.rglob("*") if path.is_file()]
        assert found == [note] and note.read_text() == "mine"
    # The log is one of the files that we wrote: all of it may be replaced.
    assert (output / "dense_connector" / "training.jsonl").is_file()
    assert strangers(output) == []


@pytest.mark.parametrize("link", [True, False])
def test_a_workspace_that_is_a_link_or_a_file_is_in_the_way(
    link: bool, delta: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MARK).touch()
    workspace = tmp_path / "OUT.training"
    workspace.symlink_to("other") if link else workspace.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="dcsurgery did not make it"):
            finetune_connector(delta, data, tmp_path / "OUT", settings=fast(), overwrite=overwrite)
    assert (tmp_path / "other" / MARK).is_file()
