"""load_model: base + delta through attach, or a stock checkpoint as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcsurgery.architectures import named
from dcsurgery.checkpoint.checks import parse_object, read_text
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import digest, file_bytes
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.connectors.attach import attach
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import MalformedCheckpointError, RequestError
from dcsurgery.loading.adopted_models import DTYPES, from_checkpoint
from dcsurgery.loading.parameter_names import (
    plain_parameters,
    projector_parameters,
    renamed_tensors,
)
from dcsurgery.originals import Hints, is_original, open_model, told
from dcsurgery.originals.adopted import Adopted
from dcsurgery.surgery.base_model import base_within, open_base
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import (
    ADAPTER_FOLDER,
    CONNECTOR_PREFIX,
    DELTA_FILE,
    PLAN_FILE,
    SurgeryPlan,
    TensorRecord,
    read_plan,
)

AGAIN = "convert or train again"


def load_model(
    path: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
    **kwargs: Any,
) -> Any:
    """Load a converted or trained folder (or Hub id): the upgraded model, in eval mode.

    A delta is attached to its base (`base` overrides where that is); a stock checkpoint is loaded
    by transformers alone, one in an original format as the Hugging Face model it means (`towers`
    and `template` as convert takes them; the template decides which tokens end an answer). A LoRA
    adapter that is not merged is loaded as transformers loads one. Further keywords go to
    from_pretrained (dtype, device_map, ...). Raises CheckpointError when the base is missing or is
    not the one the delta was made for.
    """
    folder = local_folder(path, revision)
    if not (folder / PLAN_FILE).is_file() and (folder / "config.json").is_file():
        hints = told(towers, template)
        if hints != Hints() or is_original(
            parse_object(read_text(folder / "config.json"), "config.json")
        ):
            source = open_model(path, revision, weights=True, hints=hints)
            return _load_original(source, kwargs)
        return load_stock(folder, **kwargs)
    plan = read_plan(folder)
    refuse_hints(plan, towers if plan.form != "delta" else None, template)
    if plan.form == "portable":
        # With our own connector: code that lies in a folder is never run.
        model = load_stock(base_within(folder, plan), plan.anatomy.projector.tensors, **kwargs)
        install(model, plan, folder)
        return model
    if plan.form == "stock":
        model = load_stock(folder, plan.anatomy.projector.tensors, **kwargs)
        if plan.adapter is not None and not plan.adapter.merged:
            load_adapter(model, plan, folder)
        return model
    return _load_branch(plan, folder, base, towers, kwargs)


def refuse_hints(plan: SurgeryPlan, towers: Mapping[str, str] | None, template: str | None) -> None:
    """Raise RequestError for hints that a converted model has no use for."""
    for name, value in (("--tower", towers), ("--template", template)):
        if value:
            raise RequestError(
                f"{name} is for models in an original format, and this one was converted: "
                "its files hold what was chosen",
                hint=f"leave {name} out, or convert {plan.base.id} with it",
            )


def _load_original(checkpoint: Checkpoint, kwargs: dict[str, Any]) -> Any:
    model = load_stock(checkpoint, **kwargs)
    if isinstance(checkpoint, Adopted) and checkpoint.connector is not None:
        plan = make_plan(checkpoint, Connector.of(checkpoint.connector.kind))
        _attach(model, plan, published_tensors(checkpoint, plan))
    return model


def published_tensors(checkpoint: Adopted, plan: SurgeryPlan) -> dict[str, torch.Tensor]:
    """Return the tensors of the connector a checkpoint has already, by their names in it."""
    connector = checkpoint.connector
    if connector is None or connector.rows is None:
        return {}
    raw = bytearray(b"".join(connector.rows()))
    (record,) = plan.delta
    values = torch.frombuffer(raw, dtype=DTYPES[plan.anatomy.dtype])
    return {"weight": values.reshape(record.shape)}


def load_for_training(
    path: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    towers: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> tuple[Any, SurgeryPlan]:
    """Load a converted or trained folder so that its training can go on: (model, plan).

    Either form becomes base + branch: a stock folder's own folded matrices are not read, its delta
    is. The model is in eval mode, an adapter frozen. Raises what load_model raises, and
    CheckpointNotFoundError for a folder without a plan.
    """
    folder = local_folder(path, revision)
    plan = read_plan(folder)
    return _load_branch(plan, folder, base, towers, kwargs), plan


def _load_branch(
    plan: SurgeryPlan,
    folder: Path,
    base: str | Path | None,
    towers: Mapping[str, str] | None,
    kwargs: dict[str, Any],
) -> Any:
    checkpoint = open_base(plan, base, towers)
    model = load_stock(checkpoint, plan.anatomy.projector.tensors, **kwargs)
    install(model, plan, folder)
    if plan.adapter is not None:
        load_adapter(model, plan, folder)
    return model


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


def load_adapter(model: Any, plan: SurgeryPlan, folder: Path) -> None:
    """Load a plan's LoRA adapter into a model, which keeps its class and its parameters frozen.

    Raises MalformedCheckpointError when its files are not the plan's.
    """
    place = folder / ADAPTER_FOLDER
    for name, stated in (plan.adapter.files if plan.adapter is not None else {}).items():
        if not (place / name).is_file() or digest(file_bytes(place / name)) != stated:
            raise MalformedCheckpointError(
                f"{ADAPTER_FOLDER}/{name} is not the file {PLAN_FILE} describes", hint=AGAIN
            )
    with quiet_transformers():
        info = model.load_adapter(str(place))
    lost = sorted(map(str, [*info.missing_keys, *info.unexpected_keys, *info.mismatched_keys]))
    if lost:
        raise MalformedCheckpointError(
            f"transformers cannot load all of {ADAPTER_FOLDER}: {', '.join(lost[:3])}",
            hint="load it with peft: PeftModel.from_pretrained(model, FOLDER)",
        )
    model.eval()


def install(model: nn.Module, plan: SurgeryPlan, folder: Path, *, partly: bool = False) -> None:
    """Attach a plan's connector to its loaded base and set every tensor the delta holds.

    `partly` passes over tensors of parts that were not loaded. Raises MalformedCheckpointError when
    the delta's files do not hold what the plan says.
    """
    architecture = named(plan.architecture)
    names = [record.name for record in plan.delta]
    own = [name for name in names if name.startswith(CONNECTOR_PREFIX)]
    tensors = {k.removeprefix(CONNECTOR_PREFIX): v for k, v in read_delta(plan, folder, own)}
    _attach(model, plan, tensors)
    trained = [name for name in names if name not in own]
    projector = plan.anatomy.projector.tensors
    parameters = plain_parameters(model)
    places = projector_parameters(parameters, architecture, projector)
    if set(trained) - set(projector):
        places = renamed_tensors(model, trained) | places
    for name, value in read_delta(plan, folder, trained):
        if name in places:
            _set(parameters, places[name], value, partly)
        elif not partly:
            raise RequestError(
                f"the model has no parameter that is {name}",
                hint="the delta was made for another base, or with another transformers",
            )


def _attach(model: nn.Module, plan: SurgeryPlan, own: dict[str, torch.Tensor]) -> None:
    architecture = named(plan.architecture)
    attach(model, plan.anatomy, plan.layout, architecture.arrange, own)
    if plan.layout.changes_tokens and architecture.resize is not None:
        architecture.resize(model, plan.layout)


def read_delta(
    plan: SurgeryPlan, folder: Path, names: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the named tensors of a delta one by one, checked against the plan.

    Raises MalformedCheckpointError.
    """
    from safetensors import SafetensorError, safe_open

    for file in dict.fromkeys([DELTA_FILE, *(record.file for record in plan.delta)]):
        stated = {record.name: record for record in plan.delta if record.file == file}
        try:
            with safe_open(folder / file, "pt") as opened:
                if not _holds(file, set(opened.keys()), set(stated)):
                    raise MalformedCheckpointError(
                        f"{file} holds other tensors than {PLAN_FILE} names", hint=AGAIN
                    )
                for name, record in stated.items():
                    if name in names:
                        tensor = opened.get_tensor(name)
                        _check_hash(tensor, record)
                        yield name, tensor
        except (OSError, SafetensorError) as error:
            raise MalformedCheckpointError(
                f"{folder / file} cannot be read: {str(error)[:100]}", hint=AGAIN
            ) from None


def _holds(file: str, found: set[str], stated: set[str]) -> bool:
    """Whether a file's names are right: a weight file of a stock form has others beside them."""
    return found == stated if file == DELTA_FILE else found >= stated


def _check_hash(tensor: torch.Tensor, record: TensorRecord) -> None:
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    if hashlib.sha256(raw).hexdigest() != record.sha256:
        raise MalformedCheckpointError(
            f"{record.name} in {record.file} is not the tensor {PLAN_FILE} describes",
            hint="the files belong to different runs: convert or train again",
        )


def _set(
    parameters: Mapping[str, nn.Parameter], name: str, value: torch.Tensor, partly: bool
) -> None:
    """Copy a tensor into a parameter."""
    parameter = parameters.get(name)
    if parameter is None or (partly and parameter.shape != value.shape):
        return
    if parameter.is_meta:
        raise RequestError(
            f"{name} is offloaded, and this delta has values of its own for it",
            hint="keep it on a device: name it in device_map",
        )
    if not parameter.is_floating_point():
        raise RequestError(
            f"{name} is quantised, and this delta has values of its own for it",
            hint="leave it as it is: name it in llm_int8_skip_modules",
        )
    with torch.no_grad():
        parameter.copy_(value)
