"""What is inside a checkpoint and which connectors fit, from config and headers alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Form, class_name, find_architecture
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.connectors import KINDS
from dcsurgery.connectors.folding import ITEM_BYTES
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.features import FeatureLayout
from dcsurgery.originals import open_model, told
from dcsurgery.originals.adopted import Adopted
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import PLAN_FILE, SurgeryPlan
from dcsurgery.surgery.processor_fit import ProcessorFit, fit_processor


@dataclass(frozen=True)
class FormCost:
    """One connector in one output form. `extra_bytes` is the growth of what is loaded;
    `extra_flops_per_image` counts two per multiply-add for `image_tokens` tokens."""

    form: Form
    loader: str
    new_parameters: int
    extra_bytes: int
    extra_flops_per_image: int
    image_tokens: int


@dataclass(frozen=True)
class ConnectorOffer:
    """One connector kind with its default layout (`blocks` are its hidden states), or why it does
    not fit."""

    kind: str
    summary: str
    blocks: tuple[tuple[int, ...], ...]
    costs: tuple[FormCost, ...]
    notes: tuple[str, ...]
    refused: str | None = None
    layout: FeatureLayout | None = None


@dataclass(frozen=True)
class WeightSummary:
    """A weight file: name, bytes, number of tensors."""

    name: str
    size: int
    tensors: int


@dataclass(frozen=True)
class OriginalSummary:
    """What a model in an original format is: its own class, where its towers are ("inside"), the
    connector it was trained with (None for an ordinary model), whose prompts it gets."""

    format: str
    class_name: str
    towers: dict[str, str]
    connector: str | None
    notes: tuple[str, ...]
    template: str | None = None


@dataclass(frozen=True)
class Inspection:
    """The answer of `dcsurgery inspect`; to_dict() is its stable JSON form."""

    model: str
    commit: str | None
    class_name: str
    anatomy: Anatomy
    parameters: int
    weights: tuple[WeightSummary, ...]
    side_files: tuple[str, ...]
    left_out: tuple[str, ...]
    converted: bool
    offers: tuple[ConnectorOffer, ...]
    original: OriginalSummary | None = None
    set_aside: tuple[str, ...] = ()
    processor: ProcessorFit | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        values = asdict(self)
        values["schema_version"] = 1
        values["anatomy"]["tower"]["grid"] = self.anatomy.tower.grid
        values["anatomy"]["feature_layer"] = self.anatomy.feature_layer
        return values


def inspect_checkpoint(
    model: str | Path,
    revision: str | None = None,
    *,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
) -> Inspection:
    """Inspect a folder or a Hub model (config, index and header bytes only).

    A model in an original format is inspected as the Hugging Face one it means; `towers` says where
    the vision tower is that it names, `template` how its prompts are written. Raises
    CheckpointError, UnknownArchitectureError or AnatomyError.
    """
    checkpoint = open_model(model, revision, hints=told(towers, template))
    installed = checkpoint.connector if isinstance(checkpoint, Adopted) else None
    architecture = find_architecture(checkpoint.config)
    anatomy = architecture.dissect(checkpoint.config, checkpoint.tensors)
    return Inspection(
        model=checkpoint.ref.name,
        commit=checkpoint.ref.commit,
        class_name=class_name(checkpoint.config),
        anatomy=anatomy,
        parameters=count_parameters(checkpoint),
        weights=tuple(
            WeightSummary(file.name, file.size, len(file.header.tensors))
            for file in checkpoint.weights
        ),
        side_files=checkpoint.side_files,
        left_out=checkpoint.left_out,
        converted=PLAN_FILE in checkpoint.side_files,
        offers=tuple(
            _offer(checkpoint, kind, architecture.forms)
            for kind in ([installed.kind] if installed else KINDS)
        ),
        original=_original(checkpoint),
        set_aside=checkpoint.set_aside,
        processor=fit_processor(checkpoint, architecture, anatomy),
    )


# What methods of quantisation store beside a matrix: no parameters of the model.
_BESIDE = re.compile(
    r".*\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\S+|SCB|weight_format|qzeros"
    r"|g_idx|scales|biases|weight_scale|weight_shape|weight_zero_point|weight_g_idx"
    r"|weight_scale_inv|weight_scale_2|input_scale)|.*_(blocks_)?scales"
)
_PACKED = re.compile(r".*\.(qweight|weight_packed)|.*_blocks")


def count_parameters(checkpoint: Checkpoint) -> int:
    """Return the values in all tensors; several to a word where a format packs them."""
    tensors = checkpoint.tensors
    total = 0
    for name, entry in tensors.items():
        if _BESIDE.fullmatch(name):
            continue
        packed = entry.dtype == "U8" and (f"{name}.absmax" in tensors or _PACKED.fullmatch(name))
        each = 2 if packed else 1
        if entry.dtype == "I32" and _PACKED.fullmatch(name):
            each = 32 // _bits(checkpoint.config)
        total += math.prod(entry.shape) * each
    return total


def _bits(config: Mapping[str, Any]) -> int:
    """Return the bits of a packed value, as GPTQ, AWQ and compressed-tensors state them; else 4."""
    stated = config.get("quantization_config")
    found = re.search(r"'(?:num_|w_)?bits?': (\d+)", str(stated))
    bits = int(found[1]) if found else 4
    return bits if bits in (2, 3, 4, 8) else 4


def _original(checkpoint: Checkpoint) -> OriginalSummary | None:
    if not isinstance(checkpoint, Adopted) or checkpoint.adoption is None:
        return None
    adoption, installed = checkpoint.adoption, checkpoint.connector
    return OriginalSummary(
        adoption.format,
        adoption.class_name,
        {name: item.place or "inside" for name, item in adoption.towers.items()},
        installed.kind if installed else None,
        adoption.notes,
        adoption.template.name if adoption.template else None,
    )


def _offer(checkpoint: Checkpoint, kind: str, forms: tuple[Form, ...]) -> ConnectorOffer:
    plans, refused = [], None
    for form in forms:
        try:
            plans.append(make_plan(checkpoint, Connector.of(kind, form=form)))
        except PlanError as error:
            refused = error.message
    summary = KINDS[kind]
    if not plans:
        return ConnectorOffer(kind, summary, (), (), (), refused=refused)
    layout = plans[0].layout
    return ConnectorOffer(
        kind,
        summary,
        blocks=tuple(block.layers for block in layout.blocks),
        costs=tuple(_cost(plan) for plan in plans),
        notes=tuple(plans[0].notes),
        layout=layout,
    )


def _cost(plan: SurgeryPlan) -> FormCost:
    if plan.form == "stock":
        extra_bytes = plan.new_parameters * ITEM_BYTES[plan.anatomy.dtype]
    else:
        extra_bytes = sum(math.prod(item.shape) * ITEM_BYTES[item.dtype] for item in plan.delta)
    return FormCost(
        form=plan.form,
        loader=plan.loader,
        new_parameters=plan.new_parameters,
        extra_bytes=extra_bytes,
        extra_flops_per_image=plan.extra_flops_per_image,
        image_tokens=plan.image_tokens,
    )
