"""load_model: base + delta through attach, or a stock checkpoint as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcsurgery.adopted_models import from_checkpoint
from dcsurgery.adoption import TowerPlaces, is_original, open_model
from dcsurgery.architectures import named
from dcsurgery.checkpoint.adopted import Adopted, TowerRecord
from dcsurgery.checkpoint.checks import parse_object, read_text
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.connectors.attach import attach
from dcsurgery.connectors.spec import ConnectorSpec
from dcsurgery.errors import CheckpointNotFoundError, MalformedCheckpointError, RequestError
from dcsurgery.plan import describe_base, make_plan
from dcsurgery.records import CONNECTOR_PREFIX, DELTA_FILE, PLAN_FILE, SurgeryPlan, read_plan


def load_model(
    path: str | Path, *, revision: str | None = None, base: str | Path | None = None, **kwargs: Any
) -> Any:
    """Load a converted folder (or Hub id): the upgraded model, in eval mode.

    A delta is attached to its base (`base` overrides where that is); a stock checkpoint is loaded
    by transformers alone, one in an original format as the Hugging Face model it means. Further
    keywords go to from_pretrained (dtype, device_map, ...). Raises CheckpointError when the base is
    missing or is not the one the delta was made for.
    """
    folder = _local_folder(path, revision)
    if not (folder / PLAN_FILE).is_file() and (folder / "config.json").is_file():
        if is_original(parse_object(read_text(folder / "config.json"), "config.json")):
            return _load_original(open_model(path, revision, weights=True), kwargs)
        return load_stock(folder, **kwargs)
    plan = read_plan(folder)
    projector = plan.anatomy.projector.tensors
    if plan.form == "stock":
        return load_stock(folder, projector, **kwargs)
    checkpoint = open_base(plan, base)
    model = load_stock(checkpoint, projector, **kwargs)
    install(model, plan, folder)
    return model


def _load_original(checkpoint: Checkpoint, kwargs: dict[str, Any]) -> Any:
    model = load_stock(checkpoint, **kwargs)
    if isinstance(checkpoint, Adopted) and checkpoint.connector is not None:
        plan = make_plan(checkpoint, ConnectorSpec(kind=checkpoint.connector.kind))
        _attach(model, plan, published_tensors(checkpoint, plan))
    return model


def published_tensors(checkpoint: Adopted, plan: SurgeryPlan) -> dict[str, torch.Tensor]:
    """Return the tensors of the connector a checkpoint has already, by their names in it."""
    connector = checkpoint.connector
    if connector is None or connector.rows is None:
        return {}
    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    raw = bytearray(b"".join(connector.rows()))
    dtype = dtypes.get(plan.anatomy.dtype, torch.bfloat16)
    (record,) = plan.delta
    return {"weight": torch.frombuffer(raw, dtype=dtype).reshape(record.shape)}


def load_for_training(
    path: str | Path, *, revision: str | None = None, base: str | Path | None = None, **kwargs: Any
) -> tuple[Any, SurgeryPlan]:
    """Load a converted or trained folder so that its training can go on: (model, plan).

    Either form becomes base + branch: a stock folder's own weights are not read, its delta in
    dense_connector/ is. Raises what load_model raises, and CheckpointNotFoundError for a folder
    without a plan.
    """
    folder = _local_folder(path, revision)
    plan = read_plan(folder)
    checkpoint = open_base(plan, base)
    model = load_stock(checkpoint, plan.anatomy.projector.tensors, **kwargs)
    install(model, plan, folder)
    return model, plan


def _local_folder(path: str | Path, revision: str | None) -> Path:
    from dcsurgery.checkpoint.reference import fetch, parse_reference

    found = fetch(parse_reference(path, revision)).folder
    if found is None:
        raise CheckpointNotFoundError(f"{path} was not found", hint="check the path or the Hub id")
    return found


def open_base(plan: SurgeryPlan, base: str | Path | None = None) -> Checkpoint:
    """Open the base of a plan, on this machine, and check that it is the very same one.

    Raises CheckpointNotFoundError when it is gone, MalformedCheckpointError when it differs.
    """
    checkpoint = find_base(plan, base)
    check_base(plan, checkpoint)
    return checkpoint


def find_base(plan: SurgeryPlan, base: str | Path | None = None) -> Checkpoint:
    """Open what should be the base of a plan, on this machine, unchecked.

    Raises CheckpointNotFoundError when it is gone.
    """
    where = base or plan.base.folder or plan.base.id
    revision = plan.base.commit if base is None and plan.base.folder is None else None
    towers = {n: TowerRecord(item.place, item.commit) for n, item in plan.base.towers.items()}
    try:
        return open_model(where, revision, weights=True, towers=TowerPlaces({}, towers))
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"the base model {str(where)[:200]} is needed and was not found: {error.message}",
            hint="say where it is now: load_model(..., base=FOLDER), verify --against FOLDER",
        ) from None


def check_base(plan: SurgeryPlan, checkpoint: Checkpoint) -> None:
    """Compare config, headers and the projector's bytes with the plan's record.

    Raises MalformedCheckpointError when they differ.
    """
    found = describe_base(checkpoint)
    problem = None
    if found.files != plan.base.files:
        problem = "its weight files have other sizes, names or tensors"
    elif found.config_sha256 != plan.base.config_sha256:
        problem = "its config.json differs"
    for name, digest in plan.relies_on.items() if problem is None else ():
        if name not in checkpoint.tensors:
            problem = f"it has no tensor {name}"
        elif hashlib.sha256(checkpoint.read_tensor(name)).hexdigest() != digest:
            problem = f"tensor {name} has other values"
    if problem is not None:
        raise MalformedCheckpointError(
            f"{checkpoint.ref.name} is not the base this connector was made for: {problem}",
            hint=f"the base was {plan.base.id}"
            + (f" at commit {plan.base.commit}" if plan.base.commit else "")
            + "; convert this model instead to use it",
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' load report: every caller reads loading_info itself."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def load_stock(
    source: Checkpoint | Path | str | None, projector: Collection[str] = (), **kwargs: Any
) -> Any:
    """Load a complete checkpoint with transformers and return the model in eval mode.

    `source` is a folder or an open checkpoint, which may be a presented one.

    Every tensor the model has must be found. Tensors the model has no place for are ignored, as
    transformers does (old buffers, an unused head), unless they are named like the connector or
    like one of the `projector` tensors. Raises MalformedCheckpointError.
    """
    kwargs.setdefault("dtype", "auto")
    # Reported below, with a hint, instead of transformers' own exception.
    kwargs.setdefault("ignore_mismatched_sizes", True)
    with quiet_transformers():
        model, info = from_checkpoint(source, output_loading_info=True, **kwargs)
    name = source.ref.name if isinstance(source, Checkpoint) else source
    unused = {name for name in info["unexpected_keys"] if _is_ours(name, projector)}
    problems = {
        "missing": info["missing_keys"],
        # transformers reports these with both shapes.
        "mismatched": {item[0] for item in info["mismatched_keys"]},
        "unexpected": unused,
    }
    for kind, names in problems.items():
        if names:
            raise MalformedCheckpointError(
                f"{name} has {kind} tensors: {', '.join(sorted(names)[:4])}",
                hint="run `dcsurgery verify` on it; the installed transformers may be too old",
            )
    return model.eval()


def _is_ours(name: str, projector: Collection[str]) -> bool:
    dotted = f".{name}"
    return f".{CONNECTOR_PREFIX}" in dotted or any(
        dotted.endswith(f".{ours}") for ours in projector
    )


def install(model: nn.Module, plan: SurgeryPlan, folder: Path) -> None:
    """Attach a plan's connector to its loaded base and set every tensor the delta holds.

    Raises MalformedCheckpointError when the delta's file does not hold what the plan says.
    """
    tensors = read_delta(plan, folder)
    architecture = named(plan.architecture)
    own = {
        name.removeprefix(CONNECTOR_PREFIX): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(CONNECTOR_PREFIX)
    }
    _attach(model, plan, own)
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        _set(parameters, architecture.parameter_name(name), value)


def _attach(model: nn.Module, plan: SurgeryPlan, own: dict[str, torch.Tensor]) -> None:
    architecture = named(plan.architecture)
    attach(model, plan.anatomy, plan.layout, architecture.arrange, own)
    if plan.layout.changes_tokens and architecture.resize is not None:
        architecture.resize(model, plan.layout)


def read_delta(plan: SurgeryPlan, folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a delta by name, checked against the plan's hashes."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / DELTA_FILE)
    except (OSError, SafetensorError) as error:
        raise MalformedCheckpointError(
            f"{folder / DELTA_FILE} cannot be read: {str(error)[:100]}", hint="convert again"
        ) from None
    stated = {record.name: record for record in plan.delta}
    if set(stated) != set(tensors):
        raise MalformedCheckpointError(
            f"{DELTA_FILE} holds other tensors than {PLAN_FILE} names", hint="convert again"
        )
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        if hashlib.sha256(raw).hexdigest() != stated[name].sha256:
            raise MalformedCheckpointError(
                f"{name} in {DELTA_FILE} is not the tensor {PLAN_FILE} describes",
                hint="the files belong to different conversions: convert again",
            )
    return tensors


def _set(parameters: dict[str, nn.Parameter], name: str, value: torch.Tensor) -> None:
    """Copy a delta tensor into the parameter of the same name; module paths gain prefixes."""
    found = [key for key in parameters if key == name or key.endswith("." + name)]
    if len(found) != 1:
        raise RequestError(
            f"the model has {len(found)} parameters named {name}",
            hint="the delta was made for another version of the base",
        )
    parameter = parameters[found[0]]
    if parameter.is_meta:
        raise RequestError(
            f"{name} is offloaded, and this delta has values of its own for it",
            hint="keep the projector on a device: name it in device_map",
        )
    if not parameter.is_floating_point():
        raise RequestError(
            f"{name} is quantised, and this delta has values of its own for it",
            hint="leave the projector as it is: name it in llm_int8_skip_modules",
        )
    with torch.no_grad():
        parameter.copy_(value)
