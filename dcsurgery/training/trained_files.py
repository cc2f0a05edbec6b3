"""A trained connector, written down: base + delta + the record of how it was trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import digest
from dcsurgery.checkpoint.rewrite import NewTensor
from dcsurgery.checkpoint.staging import staged_output
from dcsurgery.connectors.folding import ITEM_BYTES
from dcsurgery.errors import TrainingError
from dcsurgery.loading.adopted_models import DTYPES
from dcsurgery.loading.parameter_names import (
    plain_name,
    plain_parameters,
    stored_tensors,
    unwrapped,
)
from dcsurgery.surgery.base_model import check_base, find_base, open_base
from dcsurgery.surgery.conversion import Conversion
from dcsurgery.surgery.export import bytes_to_write, write_output
from dcsurgery.surgery.merge_lora import Adapter, describe_adapter, merge_problem, open_adapter
from dcsurgery.surgery.plan import rewritten
from dcsurgery.surgery.plan_file import (
    ADAPTED,
    ADAPTER_FOLDER,
    DELTA_FILE,
    SurgeryPlan,
    TensorRecord,
    TrainingRecord,
    read_plan,
)
from dcsurgery.surgery.planned_tensors import stored_delta
from dcsurgery.surgery.trained_plan import as_complete

CHUNK_VALUES = 4 * 1024 * 1024


def checkpoint_names(
    model: Any, checkpoint: Checkpoint, parameter_names: Sequence[str]
) -> dict[str, str]:
    """Return the tensor of the checkpoint that each parameter of the loaded model is.

    The connector's own parameters keep their names. Names may carry peft's prefixes. Raises
    TrainingError for a parameter that could not be written back: one that transformers joins or
    splits while it loads, or whose tensor is stored in a format that is not floating point.
    """
    model = unwrapped(model)
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
    base: str | Path | Checkpoint | None = None,
    source: str | Path | None = None,
    overwrite: bool = False,
    leave: Callable[[Path], None] | None = None,
) -> Conversion:
    """Write a trained model to `output` in the form of its plan; nothing is written on an error.

    `trained` are the names of its parameters that were trained, in any floating dtype; each is
    rounded once to the dtype its tensor is stored in (those of LoRA are in `adapter`, a folder with
    peft's files). `source` is the folder that the training started from: what an earlier training
    left in it and this one did not touch is carried over byte by byte; without it, those values
    come from the model. `base` is the base, opened or where it is now. `record` is completed with
    the names of the trained tensors; `leave(folder)` adds files of its own to the folder being
    filled. Raises TrainingError for values that are not finite, or DcSurgeryError as
    convert_checkpoint does.
    """
    started = time.perf_counter()
    # A plan that was never written has no hashes to compare a base with.
    written = all(plan.relies_on.values())
    if isinstance(base, Checkpoint):
        checkpoint = base
        if written:
            check_base(plan, base)
    else:
        checkpoint = open_base(plan, base) if written else find_base(plan, base)
    model = unwrapped(model)
    stored = stored_tensors(model, checkpoint)
    homes = _homes(model, stored)
    moved = [name for name in trained if ADAPTED not in name]
    names = [item for name in moved for item in _home(homes, model, checkpoint, name)]
    values = _Values(plain_parameters(model), stored)
    kept = {} if source is None else stored_delta(Path(source), read_plan(source))
    plan = _trained_plan(plan, checkpoint, values, names, record)
    lora = _adapter(adapter, source, plan)
    if lora is not None:
        plan = plan.model_copy(update={"adapter": describe_adapter(lora, _targets(lora, stored))})
    if plan.form != "delta":
        plan = _complete(checkpoint, plan, lora)
    delta = {
        item.name: values.tensor(item)
        if item.name in names or item.name not in kept
        else kept[item.name]
        for item in plan.delta
    }
    sources = [*checkpoint.folders, *([] if source is None else [Path(source)])]
    staging = staged_output(
        Path(output),
        overwrite=overwrite,
        sources=sources,
        needed=bytes_to_write(checkpoint, plan, delta, lora),
    )
    with staging as folder:
        plan, transfers = write_output(checkpoint, plan, folder, delta, lora)
        if leave is not None:
            leave(folder)
    return Conversion(plan, Path(output), transfers, time.perf_counter() - started)


def _trained_plan(
    plan: SurgeryPlan,
    checkpoint: Checkpoint,
    values: _Values,
    names: Sequence[str],
    record: TrainingRecord,
) -> SurgeryPlan:
    """Return the plan with one training more and a record of every trained tensor."""
    known = {item.name for item in plan.delta}
    fresh = [_new_record(checkpoint, name) for name in sorted(set(names) - known)]
    record = record.model_copy(update={"trained": sorted(names)})
    written = [item for item in [*plan.delta, *fresh] if item.name in names]
    rounded = sorted({note for note in map(values.rounding, written) if note})
    return plan.model_copy(
        update={
            "delta": [*plan.delta, *fresh],
            "training": [*plan.training, record],
            "notes": list(dict.fromkeys([*plan.notes, *rounded])),
        }
    )


def _new_record(checkpoint: Checkpoint, name: str) -> TensorRecord:
    found = digest(checkpoint.tensor_chunks(name))
    return rewritten(checkpoint, name).model_copy(update={"file": DELTA_FILE, "base_sha256": found})


def _adapter(given: Path | None, source: str | Path | None, plan: SurgeryPlan) -> Adapter | None:
    """Return the adapter that was trained now, or else the one of an earlier training."""
    if given is not None:
        return open_adapter(given)
    if plan.adapter is None:
        return None
    if source is None:
        raise TrainingError(
            "the model has an adapter of an earlier training, and nobody says where its files are",
            hint="pass source=, the folder that the training started from",
        )
    return open_adapter(Path(source) / ADAPTER_FOLDER)


def _targets(adapter: Adapter, stored: Mapping[str, str]) -> dict[str, str]:
    """Return the tensor of every adapted module's matrix, where it is one tensor."""
    homes = {name: tensor for tensor, name in stored.items()}
    found = {module: homes.get(f"{module}.weight") for module in adapter.modules}
    return {module: tensor for module, tensor in found.items() if tensor is not None}


def _complete(checkpoint: Checkpoint, plan: SurgeryPlan, adapter: Adapter | None) -> SurgeryPlan:
    """Return the plan of a complete checkpoint; an adapter that cannot be merged stays beside."""
    if adapter is None or plan.adapter is None:
        return as_complete(checkpoint, plan, plan.form, merge=False)
    problem = merge_problem(adapter, plan.adapter.targets)
    if problem is not None:
        note = f"the LoRA adapter is kept beside the weights, it cannot be merged: {problem}"
        plan = plan.model_copy(update={"notes": list(dict.fromkeys([*plan.notes, note]))})
    return as_complete(checkpoint, plan, plan.form, merge=problem is None)


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
