"""What would stop a run later is asked before its first step, and everything of it named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dcsurgery.connectors.request import Connector
from dcsurgery.errors import RequestError
from dcsurgery.recipes import preflight, sizes, smoke
from dcsurgery.recipes.catalog import load_recipe
from dcsurgery.recipes.launch import Launch
from dcsurgery.recipes.preflight import gpu_memory
from dcsurgery.recipes.runner import run_recipe
from dcsurgery.recipes.steps import Place, Step, build_steps
from dcsurgery.surgery.plan import make_plan
from tests.headers_only import checkpoint, llava_like
from tests.hub import Hub, User, running_hub

QUICK = ("smoke.options={tower: clip, depth: 4}", "verify=null")
GB = 10**9


@pytest.fixture(scope="module")
def seven() -> sizes.Sizes:
    """LLaVA-1.5 7B with dci, known from shapes alone: Vicuna's matrices, 32,064 words."""
    config, shapes = llava_like()
    inner = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096),
             "gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}  # fmt: skip
    for layer in range(32):
        for name, shape in inner.items():
            shapes[f"language_model.model.layers.{layer}.{name}_proj.weight"] = ("F16", shape)
    for name in ("model.embed_tokens", "lm_head"):
        shapes[f"language_model.{name}.weight"] = ("F16", (32064, 4096))
    opened = checkpoint(config, shapes)
    found = sizes._sizes(opened, make_plan(opened, Connector.of("dci", groups=2)))
    assert found.language == 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 32064 * 4096
    assert found.projector == 4096 * 1024 + 4096 + 4096**2 + 4096
    assert found.tower == 24 * 1024
    return found


def steps_of(name: str, *changes: str) -> list[Step]:
    return list(build_steps(load_recipe(name, changes)))


def test_seven_billion_numbers_take_what_the_page_says(seven: sizes.Sizes) -> None:
    """docs/training.md: 16 bytes a number under DDP, split as ZeRO does."""
    stage = load_recipe("llava-1.5-7b-dci").finetune[1]
    found = [sizes.held_on_gpu(seven, stage, way, 8) / GB for way in ("none", "zero2", "zero3")]
    assert found == pytest.approx([16 * 6.76, 7.5 * 6.76 - 0.25 * 6.76 - 12, 2 * 6.76], rel=0.15)
    projector = replace(stage, train="projector")
    assert sizes.held_on_gpu(seven, projector, "none", 1) / GB == pytest.approx(13.5 + 0.5, rel=0.1)


def test_the_disk_of_seven_billion_numbers(seven: sizes.Sizes) -> None:
    steps = steps_of("llava-1.5-7b-dci")
    most, each = sizes.peak(seven, steps, Path("nowhere"))
    # Three copies of fp16, and three checkpoints of 12 bytes a number at the last training.
    assert most / GB == pytest.approx(3 * 13.5 + 3 * 12 * 6.76, rel=0.05)
    assert list(each) == ["convert", "finetune-1", "finetune-2", "export"]
    bare, _ = sizes.peak(seven, steps_of("llava-1.5-7b-dci", "finetune.save_steps=0"), Path("no"))
    assert bare / GB == pytest.approx(4 * 13.5, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [("finetune.train=full",), ("finetune.train=lora",), ("connector.form=delta",)]
)
def test_no_run_takes_more_disk_than_was_estimated(
    changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(smoke.SMALL, "save_steps", 1)
    monkeypatch.setitem(smoke.SMALL, "max_steps", 5)
    monkeypatch.setattr(sizes, "SIDE", 0)
    from dcsurgery.training import engine

    most, complete = [0], engine.mark_complete

    def tensors(folder: Path) -> int:
        files = [f for f in folder.rglob("*") if f.suffix in (".safetensors", ".pt")]
        return sum(file.stat().st_size for file in files if "smoke" not in file.parts)

    def watched(folder: Path, facts: Any) -> None:
        most[0] = max(most[0], tensors(tmp_path / "run"))
        complete(folder, facts)

    monkeypatch.setattr(engine, "mark_complete", watched)
    options = (*QUICK, *changes, "eval=[]", "publish=null", "export=null")
    run = run_recipe("tiny", changes=options, work_dir=tmp_path / "run")
    world = tmp_path / "run/smoke"
    place = Place(run.work, str(world / "base"), None, {}, world, True, print)
    found, each = sizes.peak(sizes.sizes_of(run.recipe, place), build_steps(run.recipe), run.work)
    # Headers and step counts of the optimiser come on top of the numbers: a tiny model has many.
    assert 0.5 * found < most[0] < 1.35 * found, (most, each)


def room(free: int) -> Any:
    return lambda path: SimpleNamespace(total=free, used=0, free=free)


@pytest.mark.slow
def test_a_disk_that_is_too_full_is_named_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", room(10**6))
    with pytest.raises(RequestError, match=r"1 MB are free \(convert .*finetune-1 ") as refused:
        run_recipe("tiny", changes=QUICK, work_dir=tmp_path / "run")
    assert "finetune.save_steps=0" in refused.value.hint
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["smoke"]
    monkeypatch.setattr(shutil, "disk_usage", usage)
    again = run_recipe("tiny", changes=QUICK, work_dir=tmp_path / "run", until="convert")
    assert again.finished, "the folder is still this recipe's"


def test_gpus_that_are_too_small_are_named_with_what_fits(
    seven: sizes.Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [(79 * GB, 80 * GB)] * 8
    monkeypatch.setattr(preflight, "gpu_memory", lambda: gpus)

    def told(launch: Launch, *changes: str) -> list[tuple[str, str]]:
        place = Place(Path("w"), "", None, {}, Path("d"), True, print, launch)
        return preflight._gpus(seven, steps_of("llava-1.5-7b-dci", *changes), place)

    ((text, hint),) = told(Launch(processes=8), "finetune.sharding=none")
    assert text.startswith("finetune-2: ") and "of which 79 GB are free" in text
    assert hint == "--set finetune.1.sharding=zero2"
    assert told(Launch(processes=8), "finetune.sharding=zero2") == []
    ((_, hint),) = told(Launch(), "finetune.sharding=none")
    assert hint.startswith("--set finetune.1.train=lora")
    assert told(Launch(), "finetune.1.train=lora", "finetune.sharding=none") == []
    gpus[3] = (2 * GB, 80 * GB)  # somebody else's process
    assert len(told(Launch(processes=8), "finetune.sharding=zero2")) == 2
    assert told(Launch(processes=2), "finetune.1.train=lora", "finetune.sharding=none") == []
    assert told(Launch(config=Path("theirs.yaml"))) == []
    monkeypatch.setattr(preflight, "gpu_memory", list)
    assert told(Launch(), "finetune.sharding=none") == []


def test_gpus_are_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    answer = SimpleNamespace(returncode=0, stdout="a warning\n[[1, 2], [3, 4]]\n")
    monkeypatch.setattr(preflight.subprocess, "run", lambda *a, **k: answer)
    assert gpu_memory() == [(1, 2), (3, 4)]
    monkeypatch.setattr(torch.cuda, "device_count", int)
    assert gpu_memory() == []


RECIPE = """\
name: mine
title: Mine
source: here
base: {model: base}
verify: null
connector: {kind: dci, form: delta}
eval: {name: rows, data: rows.jsonl, images: pictures}
publish: {repo: my-name/tuned, private: true}
cost: {gpu: none, hours: 1, disk_gb: 1, source: guessed}
smoke: {model: llava}
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users |= {
            "hf_reader": User("my-name", role="read"),
            "hf_writer": User("my-name"),
            "hf_other": User("other"),
            "hf_scoped": User("my-name", role="fineGrained", scopes=(("else", "repo.write"),)),
        }
        yield hub


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_reader", "the token of my-name is read-only"),
        ("hf_other", "other cannot create my-name/tuned"),
        ("hf_scoped", "has no write permission for my-name/tuned"),
        ("hf_unknown", "the Hub does not accept this token (401)"),
        ("", "no Hub token was found"),
        ("hf_writer", ""),
    ],
)
def test_push_permission_and_data_are_asked_for_at_once(
    token: str, words: str, hub: Hub, tiny_clip: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_clip, tmp_path / "base")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"image": "a.jpg", "question": "Why?", "answer": "x"}\n')
    env = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "dcsurgery", "recipe", "run", "mine.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr, done.stderr
    assert "eval-rows: 1 of 1 rows cannot be used" in done.stderr
    assert "hint: dcsurgery recipe data mine" in done.stderr
    assert not (tmp_path / "mine.run").exists(), "no step began"
    assert ("my-name/tuned" in done.stderr) == (words.count("my-name/tuned") > 0)
