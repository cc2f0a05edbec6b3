"""Workers that read rows change neither rows nor counts nor errors, and stop with the training."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dcsurgery.data.batches import TrainingDataset
from dcsurgery.data.prompts import Prompter
from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan_file import DELTA_FILE
from dcsurgery.training import workers
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.training.finetuned import Finetuned
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.workers import worker_count
from tests.training.pictures import save_picture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")

VALUES: dict[str, Any] = {
    "train": "lora", "lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.2, "lr": 1e-3,
    "batch_size": 4, "micro_batch": 2, "max_steps": 7, "connector_lr": 1e-2, "projector_lr": 1e-3,
    "save_steps": 2, "max_length": 60, "max_bad": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def delta(tiny_siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers") / "delta"
    convert_checkpoint(tiny_siglip, folder, form="delta")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen rows: one is too long for its picture, one breaks off, one is cut."""
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for number in range(14):
        name = save_picture(folder / f"{number}.png", 32, 32, seed=number).name
        said = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": f"{number}"}]
        rows.append({"id": f"r{number}", "image": name, "conversations": said})
    rows[3]["conversations"][0]["value"] = "<image>" + "y" * 90
    rows[5]["conversations"][1]["value"] = "x" * 90
    whole = (folder / "9.png").read_bytes()
    (folder / "9.png").write_bytes(whole[:80] + b"\0" * 40 + whole[120:])
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad rows are found in their turn, not by the look at a sample, which is all rows here."""
    monkeypatch.setattr(TrainingDataset, "measure", lambda self: None)


def tuned(delta: Path, data: Path, out: Path, count: int, **options: Any) -> Finetuned:
    given = {name: options.pop(name) for name in ("resume", "progress") if name in options}
    settings = TrainingSettings(**{**VALUES, "workers": count, **options})
    return finetune_connector(delta, data, out, settings=settings, **given)


def found(done: Finetuned) -> dict[str, Any]:
    record = done.record
    bad = done.output / "dense_connector" / "bad_rows.jsonl"
    clocks = ("seconds", "tokens_per_second")
    return {
        "weights": (done.output / DELTA_FILE).read_bytes(),
        "lost": (record.skipped_rows, record.cut_rows, record.cut_answers, record.dropped),
        "bad": sorted(bad.read_text().splitlines()),
        "curve": [{k: v for k, v in row.items() if k not in clocks} for row in done.result.history],
    }


@pytest.mark.slow
def test_any_number_gives_the_same_bits_and_counts_also_after_a_stop(
    delta: Path, data: Path, tmp_path: Path
) -> None:
    alone = found(tuned(delta, data, tmp_path / "0", 0))
    assert alone["lost"] == (2, 1, 1, {}) and len(alone["curve"]) == 7
    for count in (1, 3):
        assert found(tuned(delta, data, tmp_path / str(count), count)) == alone

    def stop(step: int, steps: int, words: str) -> None:
        # A terminal tells all of them.
        if step == 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tuned(delta, data, tmp_path / "cut", 2, progress=stop)
    assert not multiprocessing.active_children()
    done = tuned(delta, data, tmp_path / "cut", 1, resume=True)
    assert done.result.resumed_at == 4
    assert found(done) | {"curve": None} == alone | {"curve": None}


@pytest.mark.slow
def test_rows_are_encoded_elsewhere(
    delta: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Prompter.encode

    def noted(self: Prompter, *args: Any) -> Any:
        (tmp_path / f"pid-{os.getpid()}").touch()
        return encode(self, *args)

    monkeypatch.setattr(Prompter, "encode", noted)
    tuned(delta, data, tmp_path / "out", 2)
    assert len(list(tmp_path.glob("pid-*"))) >= 2
    assert not (tmp_path / f"pid-{os.getpid()}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 2])
def test_too_many_bad_rows_stop_it_at_the_same_step_with_the_same_words(
    delta: Path, data: Path, tmp_path: Path, count: int
) -> None:
    steps: list[int] = []
    with pytest.raises(RequestError) as caught:
        tuned(delta, data, tmp_path / "out", count, max_bad=8,
              progress=lambda *step: steps.append(step[0]))  # fmt: skip
    assert caught.value.message.startswith("2 of 14 rows cannot be used, more than 8 %: r")
    assert "r9: " in caught.value.message and "--max-bad 15%" in caught.value.hint
    assert "Traceback" not in caught.value.message
    assert steps == [1]
    done = tuned(delta, data, tmp_path / "out", count, resume=True)
    assert done.result.resumed_at == 1 and done.record.skipped_rows == 2


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_the_training_goes_on_with_resume(
    delta: Path, data: Path, tmp_path: Path
) -> None:
    def kill(step: int, steps: int, words: str) -> None:
        if step == 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(TrainingError, match="a process that reads rows has died") as caught:
        tuned(delta, data, tmp_path / "out", 2, progress=kill)
    assert "--resume" in caught.value.hint and "--workers 0" in caught.value.hint
    done = tuned(delta, data, tmp_path / "out", 0, resume=True)
    assert done.result.resumed_at == 2 and done.record.steps == 7


@pytest.mark.parametrize(
    ("gpu", "cores", "processes", "wanted"),
    [(False, 16, 1, 0), (True, 16, 1, 4), (True, 16, 8, 1), (True, 3, 1, 2), (True, 1, 1, 0)],
)
def test_the_default_follows_the_cores(
    gpu: bool, cores: int, processes: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert worker_count(TrainingSettings(), streamed=False) == wanted
    assert worker_count(TrainingSettings(workers=7), streamed=False) == 7
    assert worker_count(TrainingSettings(workers=7), streamed=True) == 0


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert worker_count(TrainingSettings(), streamed=False) == 0
    with pytest.raises(RequestError, match="--workers 2 needs Linux"):
        worker_count(TrainingSettings(workers=2), streamed=False)
