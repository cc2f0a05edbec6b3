"""A trained connector, written down: base + delta + the record of how it was trained."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.rewrite import NewTensor, estimate_bytes
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.convert import Conversion, write_folder
from dcsurgery.errors import TrainingError
from dcsurgery.folding import ITEM_BYTES
from dcsurgery.loading import find_base, open_base
from dcsurgery.parameter_names import plain_name, plain_parameters, stored_tensors
from dcsurgery.records import (
    DELTA_FILE,
    SurgeryPlan,
    TensorRecord,
    TrainingRecord,
    read_plan,
)
from dcsurgery.tensors import stock_tensors, stored_delta

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
CHUNK_VALUES = 4 * 1024 * 1024


def checkpoint_names(
    model: Any, checkpoint: Checkpoint, parameter_names: Sequence[str]
) -> dict[str, str]:
    """Return the tensor of the checkpoint that each parameter of the loaded model is.

    The connector's own parameters keep their names. Names may carry peft's prefixes. Raises
    TrainingError for a parameter that could not be written back: one that transformers joins or
    splits while it loads, or whose tensor is stored in a format that is not floating point.
    """
    homes = _homes(model, stored_tensors(model, checkpoint))
    return {name: _home(homes, model, checkpoint, name)[0] for name in parameter_names}


def _homes(model: Any, stored: Mapping[str, str]) -> dict[int, list[str]]:
    """Return the tensors that hold a parameter, by its id: a tied matrix may be stored twice."""
    parameters = plain_parameters(model)
    homes: dict[int, list[str]] = {}
    for tensor, name in stored.items():
        homes.setdefault(id(parameters[name]), []).append(tensor)
    return homes


def _home(
    homes: Mapping[int, list[str]], model: Any, checkpoint: Checkpoint, name: str
) -> list[str]:
    parameter = plain_parameters(model).get(plain_name(name))
    if parameter is None:
        raise TrainingError(
            f"the model has no parameter {name}", hint="name parameters as the model does"
        )
    tensors = homes.get(id(parameter), [])
    _check_home(checkpoint, name, parameter, tensors)
    return tensors


def _check_home(
    checkpoint: Checkpoint, name: str, parameter: Tensor, tensors: Sequence[str]
) -> None:
    if not tensors:
        raise TrainingError(
            f"{name} is not one tensor of {checkpoint.ref.name}: transformers joins or splits what "
            "is stored when it loads the model, so it cannot be written back",
            hint="freeze it: train the connector, the projector or LoRA instead",
        )
    for tensor in tensors:
        entry = checkpoint.tensors.get(tensor)
        if entry is None:  # the connector's own
            continue
        if entry.dtype not in ITEM_BYTES or entry.shape != tuple(parameter.shape):
            raise TrainingError(
                f"{name} is stored as {entry.dtype} {list(entry.shape)} ({tensor}) and is "
                f"{list(parameter.shape)} in the model, so it cannot be written back",
                hint="freeze it: train the connector, the projector or LoRA instead",
            )


def write_trained(  # noqa: PLR0913 - what a training leaves behind, each under its own name
    output: str | Path,
    *,
    plan: SurgeryPlan,
    model: Any,
    trained: Sequence[str],
    record: TrainingRecord,
    adapter: Path | None = None,
    base: str | Path | None = None,
    source: str | Path | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write a trained model to `output` in the form of its plan; nothing is written on an error.

    `trained` are the names of its parameters that were trained, in any floating dtype; each is
    rounded once to the dtype its tensor is stored in. `source` is the folder that the training
    started from: what an earlier training left in it and this one did not touch is carried over
    byte by byte (without it, those values come from the model). `adapter` is a folder with peft's
    files, `base` where the base is now. `record` is completed with the names of the trained
    tensors. Raises TrainingError for values that are not finite, or DcSurgeryError as
    convert_checkpoint does.
    """
    started = time.perf_counter()
    # A plan that was never written has no hashes to compare a base with.
    written = all(plan.relies_on.values())
    checkpoint = open_base(plan, base) if written else find_base(plan, base)
    stored = stored_tensors(model, checkpoint)
    homes = _homes(model, stored)
    names = [item for name in trained for item in _home(homes, model, checkpoint, name)]
    values = _Values(plain_parameters(model), stored)
    kept = {} if source is None else stored_delta(Path(source), read_plan(source))
    plan = _trained_plan(plan, checkpoint, values, names, record)
    delta = {
        item.name: values.tensor(item)
        if item.name in names or item.name not in kept
        else kept[item.name]
        for item in plan.delta
    }
    stock = stock_tensors(checkpoint, plan, delta) if plan.form == "stock" else {}
    sources = [Path(folder) for folder in (checkpoint.ref.folder, source) if folder is not None]
    needed = sum(item.nbytes for item in delta.values()) + 256 * 1024
    if plan.form == "stock":
        needed += estimate_bytes(checkpoint, stock)
    target = Path(output)
    with staged_output(target, overwrite=overwrite, sources=sources, needed=needed) as folder:
        plan, transfers = write_folder(checkpoint, plan, folder, delta, stock)
    return Conversion(plan, target, transfers, time.perf_counter() - started)


def _trained_plan(
    plan: SurgeryPlan,
    checkpoint: Checkpoint,
    values: _Values,
    names: Sequence[str],
    record: TrainingRecord,
) -> SurgeryPlan:
    """Return the plan with one training more and a record of every trained tensor."""
    fresh = [_new_record(checkpoint, n) for n in sorted(names) if n in checkpoint.tensors]
    in_delta = [item.model_copy(update={"file": DELTA_FILE}) for item in fresh]
    record = record.model_copy(update={"trained": sorted(names)})
    after = plan.model_copy(
        update={
            "delta": _joined(plan.delta, in_delta),
            "changed": _joined(plan.changed, fresh if plan.form == "stock" else ()),
            "training": [*plan.training, record],
        }
    )
    written = [item for item in after.delta if item.name in names]
    rounded = sorted({note for note in map(values.rounding, written) if note})
    notes = [*plan.notes, *(note for note in rounded if note not in plan.notes)]
    return after.model_copy(update={"notes": notes})


def _joined(known: Sequence[TensorRecord], more: Sequence[TensorRecord]) -> list[TensorRecord]:
    names = {item.name for item in known}
    return [*known, *(item for item in more if item.name not in names)]


def _new_record(checkpoint: Checkpoint, name: str) -> TensorRecord:
    entry = checkpoint.tensors[name]
    return TensorRecord(
        name=name,
        file=checkpoint.file_of(name).name,
        dtype=entry.dtype,
        shape=list(entry.shape),
        base_shape=list(entry.shape),
        base_sha256=hashlib.sha256(checkpoint.read_tensor(name)).hexdigest(),
    )


class _Values:
    """The parameters of a model as the bytes of the tensors they are."""

    def __init__(self, parameters: Mapping[str, Tensor], stored: Mapping[str, str]) -> None:
        self.parameters = parameters
        self.stored = stored

    def rounding(self, record: TensorRecord) -> str | None:
        """Say what is lost when a tensor is written; None when nothing is."""
        dtype = self.parameters[self.stored[record.name]].dtype
        if torch.promote_types(dtype, DTYPES[record.dtype]) == DTYPES[record.dtype]:
            return None
        return f"trained in {str(dtype).removeprefix('torch.')}, rounded to {record.dtype} once"

    def tensor(self, record: TensorRecord) -> NewTensor:
        """Return a tensor to write, in the dtype and shape of its record."""
        value = self.parameters[self.stored[record.name]].detach()

        def chunks() -> Iterator[bytes]:
            for part in torch.split(value.reshape(-1), CHUNK_VALUES):
                cast = part.to(device="cpu", dtype=DTYPES[record.dtype])
                if not torch.isfinite(cast).all():
                    raise TrainingError(
                        f"{record.name} has values that {record.dtype} cannot hold (NaN or inf)",
                        hint="train again with a lower learning rate",
                    )
                yield cast.view(torch.uint8).numpy().tobytes()

        return NewTensor(record.name, record.dtype, tuple(record.shape), chunks)
