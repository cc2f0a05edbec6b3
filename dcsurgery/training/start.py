"""From what a user names to a loaded model that can be trained."""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.data.processor import load_processor
from dcsurgery.errors import RequestError
from dcsurgery.loading.adopted_models import DTYPES as STORED
from dcsurgery.loading.load import load_for_training, read_delta, refuse_hints
from dcsurgery.loading.parameter_names import plain_parameters
from dcsurgery.originals import open_model, told
from dcsurgery.surgery.base_model import find_base
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import (
    ADAPTER_FOLDER,
    CONNECTOR_PREFIX,
    PLAN_FILE,
    SurgeryPlan,
    read_plan,
)
from dcsurgery.surgery.processor_fit import fit_processor
from dcsurgery.training.freeze import projector_names
from dcsurgery.training.job import Request
from dcsurgery.training.lora import merge_adapters, restore_adapters
from dcsurgery.training.precision import DTYPES, wanted_precision
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.trained_files import checkpoint_names


@dataclass(frozen=True)
class Start:
    """A loaded model with its branch, the plan that is trained, and its base.

    `source` is the folder an earlier training wrote, None for a model converted on the way.
    `processor` counts the connector's image tokens. `merged` are the weights that an adapter of an
    earlier training went into, where the whole language model is trained.
    """

    model: Any
    plan: SurgeryPlan
    base: Checkpoint
    source: Path | None
    processor: Any
    merged: tuple[str, ...] = ()


def check_origin(asked: Request) -> Path:
    """Return the folder of a model, fetched if need be.

    Raises RequestError when it has a connector and another is asked for, or has none and none is.
    """
    folder = local_folder(asked.model, asked.revision)
    converted = (folder / PLAN_FILE).is_file()
    if converted and asked.connector is not None:
        raise RequestError(
            f"{asked.model} has a {read_plan(folder).kind} connector already",
            hint="leave out --connector to train it, or name its base",
        )
    if converted:
        refuse_hints(read_plan(folder), None, asked.template)
    if not converted and asked.connector is None:
        raise RequestError(
            f"{asked.model} has no dense connector yet",
            hint="say which it gets on the way: --connector dci, or convert it first",
        )
    if asked.connector is not None and asked.connector.form == "reference":
        raise RequestError(
            "a training ends in the stock or the delta form, not in the reference's",
            hint="leave out --form, then: dcsurgery export OUT -o REFERENCE --form reference",
        )
    return folder


def start(asked: Request) -> Start:
    """Load what is trained, in the dtype of the training. Raises DcSurgeryError."""
    folder = check_origin(asked)
    if asked.connector is None:
        return _load(folder, folder, asked)
    hints: dict[str, Any] = {"towers": asked.towers, "template": asked.template}
    checkpoint = open_model(asked.model, asked.revision, hints=told(**hints))
    form = make_plan(checkpoint, asked.connector).form
    with tempfile.TemporaryDirectory(prefix="dcsurgery-") as place:
        delta = Path(place) / "delta"
        connector = replace(asked.connector, form="delta")
        options = {"revision": asked.revision, **hints}
        convert_checkpoint(asked.model, delta, connector=connector, **options)
        found = _load(delta, None, asked)
    return replace(found, plan=found.plan.model_copy(update={"form": form}))


def _load(folder: Path, source: Path | None, asked: Request) -> Start:
    places: dict[str, Any] = {"base": asked.base, "towers": asked.towers}
    model, plan = load_for_training(
        folder, **places, **load_options(asked.settings, read_plan(folder))
    )
    base = find_base(plan, **places)
    architecture = named(plan.architecture)
    fit = fit_processor(base, architecture, plan.anatomy)
    if fit is not None and fit.words and not plan.processor_changes:
        raise RequestError(fit.notes[0], hint="convert the base again: the new plan repairs it")
    _restore(model, plan, folder, base, asked.settings)
    merged: tuple[str, ...] = ()
    if plan.adapter is not None and asked.settings.train == "full":
        merged = merge_adapters(model)
        plan = plan.model_copy(update={"adapter": None})
    return Start(model, plan, base, source, load_processor(folder, **places), merged)


def _restore(
    model: Any, plan: SurgeryPlan, folder: Path, base: Checkpoint, settings: TrainingSettings
) -> None:
    """Give connector, projector and an adapter the values that are stored, in fp32.

    They may have been loaded in fewer bits, as the rest of the model is.
    """
    parameters = plain_parameters(model)
    names = [name for name in parameters if name.startswith(CONNECTOR_PREFIX)]
    if settings.train != "connector":
        names += projector_names(parameters, plan)
    homes = checkpoint_names(model, base, names)
    values = dict(read_delta(plan, folder, list(homes.values())))
    for name, tensor in homes.items():
        stored = values.get(tensor)
        if stored is None:
            entry = base.tensors[tensor]
            raw = bytearray(base.read_tensor(tensor))
            stored = torch.frombuffer(raw, dtype=STORED[entry.dtype]).view(entry.shape)
        parameter = parameters[name]
        parameter.data = stored.to(parameter.device, torch.float32)
    if plan.adapter is not None and settings.train == "lora":
        restore_adapters(model, folder / ADAPTER_FOLDER)


def load_options(settings: TrainingSettings, plan: SurgeryPlan) -> dict[str, Any]:
    """Return from_pretrained's keywords. Raises RequestError where few bits are not possible.

    Where the whole language model or the tower is trained, it is fp32 from the start: rounding it
    first would change what is trained.
    """
    precision = wanted_precision(settings)
    whole = settings.train == "full" or settings.train_tower
    if settings.quantize is None:
        return {"dtype": torch.float32 if whole else DTYPES[precision]}
    if whole:
        raise RequestError(
            f"weights in {settings.quantize} cannot be trained",
            hint=f"use --train lora, projector or connector with --quantize {settings.quantize}",
        )
    if find_spec("bitsandbytes") is None:
        raise RequestError(
            f"--quantize {settings.quantize} needs the package bitsandbytes",
            hint="pip install bitsandbytes, or leave out --quantize",
        )
    from transformers import BitsAndBytesConfig

    # In every layer and step it says that 8 bits compute in fp16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    anatomy = plan.anatomy
    parts = [
        *(name for name, _ in anatomy.tower.paths),
        *(s.module for s in anatomy.projector.sites),
    ]
    kept = {name.removeprefix("model.").partition(".")[0] for name in parts} | {"lm_head"}
    return {
        "dtype": DTYPES[precision],
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=settings.quantize == "4bit",
            load_in_8bit=settings.quantize == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=DTYPES[precision],
            # Tower, projector and head stay as they are, however deep they lie.
            llm_int8_skip_modules=[rf"(?:.*\.)?{re.escape(name)}" for name in sorted(kept)],
        ),
    }
