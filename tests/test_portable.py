"""The portable form of every family, in a process without dcsurgery: all that people do with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dcsurgery
from dcsurgery.architectures import available
from dcsurgery.connectors.request import Connector
from dcsurgery.surgery.export import export_checkpoint
from dcsurgery.surgery.plan_file import CONNECTOR_PREFIX
from dcsurgery.surgery.portable import ALONE
from tests.architectures.cases import Case, logits, make_case
from tests.architectures.families import contracts
from tests.surgery import write_delta

CHILD = Path(__file__).with_name("portable_child.py")
OLD = [
    item for item in os.environ.get("DCSURGERY_OLD_TRANSFORMERS", "").split(":") if "4.57" in item
]
FAMILIES = [item.name for item in available() if item.portable]
CHECKS = (
    "equals_the_branch", "generates", "inner_model_loads", "saves_and_comes_back", "trains",
    "stock_code_refuses",
)  # fmt: skip
# What takes long is asked of one family of every kind of site and arrangement.
MORE = ("copies", "runs_from_disk", "spreads", "takes_lora", "compiles", "bf16_runs")
THOROUGH = ("llava", "qwen2_5_vl", "gemma3", "internvl", "glm4v", "molmo2", "lfm2_vl")
# Connectors beyond the first family-wide dci, where each way of joining is met once.
OTHERS = {
    "sci": Connector("sci"),
    "normed sci": Connector("sci", norm=True),
    "mix": Connector("mix", groups=3),
}
pytestmark = pytest.mark.slow
KINDS = [f"{family}, {kind}" for family in ("qwen2_5_vl", "gemma3", "llava") for kind in OTHERS]
SHAPES = ((1, 1), (2, 1), (1, 2))


def random_connector(case: Case) -> dict[str, torch.Tensor]:
    """Seeded values for every tensor of a connector."""
    draw = torch.Generator().manual_seed(7)
    dtypes = {"F32": torch.float32}
    return {
        item.name.removeprefix(CONNECTOR_PREFIX): 0.25
        * torch.randn(item.shape, generator=draw, dtype=dtypes[item.dtype])
        for item in case.plan.delta
    }


def write_job(case: Case, work: Path, name: str) -> dict[str, Any]:
    """Write a portable folder with a random connector, inputs, and the branch's logits."""
    options = {**case.options, "norm": case.spec.norm}
    write_delta(case.tiny.folder, work / "delta", random_connector(case), **options)
    export_checkpoint(work / "delta", work / "portable", form="portable")
    branch = dcsurgery.load(work / "delta", dtype=torch.float32)
    files: dict[str, list[str]] = {"inputs": [], "logits": [], "base_logits": []}
    for batch, images in SHAPES:
        values = case.tiny.inputs(branch, batch, images)
        found = {"inputs": values, "logits": {"logits": logits(case, branch, batch, images)}}
        found["base_logits"] = {"logits": logits(case, case.plain(), batch, images)}
        for kind, tensors in found.items():
            files[kind].append(f"{work}/{batch}-{images}-{kind}")
            save_file({k: v.contiguous() for k, v in tensors.items()}, files[kind][-1])
    stock = json.loads((case.tiny.folder / "config.json").read_text())["architectures"][0]
    folder = str(work / "portable")
    names = {"name": name, "folder": folder, "base": str(case.tiny.folder), "stock": stock}
    checks = CHECKS + MORE if name in THOROUGH else CHECKS
    checks = tuple(check for check in checks if stock not in ALONE or check != "inner_model_loads")
    return {**names, "checks": checks, **files}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable folder of every family, and of every kind of connector."""
    work, made = tmp_path_factory.mktemp("portable"), {}
    for number, contract in enumerate(contracts()):
        tiny = contract.tiny(work / str(number) / "base", 1)
        case = make_case(tiny, contract.specs[0])
        family = case.architecture.name
        if family in made or family not in FAMILIES:
            continue
        made[family] = write_job(case, work / str(number), family)
        for at, (kind, spec) in enumerate(OTHERS.items()):
            if f"{family}, {kind}" in KINDS:
                name = f"{family}, {kind}"
                made[name] = write_job(make_case(tiny, spec), work / f"{number}-{at}", name)
    (work / "jobs.json").write_text(json.dumps(list(made.values())))
    return work / "jobs.json"


def run_child(jobs: Path, path: str) -> dict[str, dict[str, str]]:
    results = jobs.with_name(f"results-{len(path)}.json")
    environment = {**os.environ, "PYTHONPATH": path, "HF_MODULES_CACHE": str(jobs.parent / "cache")}
    done = subprocess.run(
        [sys.executable, str(CHILD), str(jobs), str(results)],
        env=environment, cwd=jobs.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, str]] = json.loads(results.read_text())
    return found


@pytest.fixture(scope="module")
def results(jobs: Path) -> dict[str, dict[str, str]]:
    return run_child(jobs, "")


@pytest.fixture(scope="module")
def old(jobs: Path) -> dict[str, dict[str, str]]:
    return run_child(jobs, OLD[0])


@pytest.mark.parametrize("name", [*FAMILIES, *KINDS])
def test_everything_works_without_dcsurgery(results: dict[str, dict[str, str]], name: str) -> None:
    failed = {check: why for check, why in results[name].items() if why}
    assert failed.keys() <= {"as_the_base"}, failed
    assert results[name].keys() >= set(CHECKS) - {"inner_model_loads"}


@pytest.mark.parametrize("name", [*FAMILIES, *KINDS])
@pytest.mark.skipif(not OLD, reason="DCSURGERY_OLD_TRANSFORMERS names no 4.57")
def test_everything_works_in_transformers_4(old: dict[str, dict[str, str]], name: str) -> None:
    failed = {check: why for check, why in old[name].items() if why}
    assert failed.keys() <= {"exists", "as_the_base"}, failed


@pytest.mark.skipif(not OLD, reason="DCSURGERY_OLD_TRANSFORMERS names no 4.57")
def test_most_families_exist_in_transformers_4(old: dict[str, dict[str, str]]) -> None:
    assert sum("exists" not in found for found in old.values()) > len(old) * 0.6
