"""Shared by several tests: install a matrix of our choice and write it in either form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dcsurgery import read_plan
from dcsurgery.checkpoint.contents import open_checkpoint
from dcsurgery.checkpoint.rewrite import NewTensor, write_checkpoint
from dcsurgery.connectors.folding import Rows, encoded, streamed_rows
from dcsurgery.surgery.convert import convert_checkpoint, edit_config
from dcsurgery.surgery.plan_file import (
    CONNECTOR_PREFIX,
    CONNECTOR_TENSOR,
    DELTA_FILE,
    PLAN_FILE,
    SurgeryPlan,
)
from dcsurgery.surgery.planned_tensors import fold_sites

# Conversions whose stock form serving engines read.
SERVED: dict[str, dict[str, Any]] = {
    "dci": {},
    "dci3": {"groups": 3},
    "sci": {"connector": "sci"},
    "sci reversed": {"connector": "sci", "layers": "3,1"},
    "mix": {"connector": "mix"},
}


def random_matrix(plan: SurgeryPlan, seed: int = 7, scale: float = 0.25) -> torch.Tensor:
    """Return a seeded D [out, G * width] for a plan."""
    shape = next(record.shape for record in plan.delta if record.name == CONNECTOR_TENSOR)
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """Tensor name -> SHA-256, read by safetensors itself."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: digest(file.get_tensor(name)) for name in file.keys()}
    return found


def write_delta(
    base: Path, output: Path, matrix: torch.Tensor | dict[str, torch.Tensor], **options: Any
) -> SurgeryPlan:
    """Convert `base` to a delta that holds these tensors, as training would leave it.

    A single one is D; a table has the connector's tensors by their name in it ("weight", "mix").
    """
    convert_checkpoint(base, output, **{"form": "delta", **options})
    plan = read_plan(output)
    given = matrix if isinstance(matrix, dict) else {"weight": matrix}
    tensors = {CONNECTOR_PREFIX + name: value for name, value in given.items()}
    save_file(tensors, output / DELTA_FILE, metadata={"format": "pt"})
    records = [
        record.model_copy(update={"sha256": digest(tensors[record.name])}) for record in plan.delta
    ]
    plan = plan.model_copy(update={"delta": records})
    (output / PLAN_FILE).write_text(plan.model_dump_json(), encoding="utf-8")
    return plan


def write_folded(
    base: Path,
    output: Path,
    matrix: torch.Tensor,
    shares: Sequence[Sequence[float]] | None = None,
    **options: Any,
) -> SurgeryPlan:
    """Write `base` with `matrix` folded into its first matrices: a stock checkpoint."""
    plan = convert_checkpoint(base, output.with_name(output.name + "-zero"), **options).plan
    checkpoint = open_checkpoint(base)

    def base_rows(name: str) -> Rows:
        entry = checkpoint.tensors[name]
        return streamed_rows(lambda: checkpoint.tensor_chunks(name), entry.dtype, entry.shape)

    delta = streamed_rows(lambda: [matrix.numpy().tobytes()], "F32", matrix.shape)
    new = {}
    for name, rows in fold_sites(plan, base_rows, delta, shares).items():
        record = next(record for record in plan.changed if record.name == name)
        chunks = encoded(rows, record.dtype)
        new[name] = NewTensor(name, record.dtype, tuple(record.shape), chunks)
    output.mkdir()
    write_checkpoint(checkpoint, output, new, edit_config(checkpoint, plan), link=False)
    return plan
