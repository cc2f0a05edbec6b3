"""The reference form: what HJYao00/DenseConnector saves and loads, its first matrix widened.

The checkpoint is presented under the reference's names, with W and D side by side in
`mm_projector.0`, and written as any presented checkpoint is: bytes move, nothing is loaded. The
reference numbers its hidden states in code, so only the connectors it knows can be written.
"""

from __future__ import annotations

import re
from pathlib import Path

from dcsurgery.architectures import class_name
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.copying import Transfer
from dcsurgery.checkpoint.rewrite import write_checkpoint
from dcsurgery.errors import PlanError
from dcsurgery.features import describe_layers
from dcsurgery.originals.adopted import Adopted, Adoption, Presented, present
from dcsurgery.originals.dense import reference_blocks
from dcsurgery.originals.vision import KEY as TOWER_KEY
from dcsurgery.surgery.paper_config import (
    CLASSES,
    INSIDE,
    WORDS,
    reference_config,
    reference_name,
    tower_name,
)
from dcsurgery.surgery.paper_mini_gemini import mini_gemini_checkpoint
from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.surgery.planned_tensors import Delta, cut_rows, widened

__all__ = [
    "TOWER_KEY",
    "reference_checkpoint",
    "reference_name",
    "write_reference",
]

_PROCESSOR = re.compile(r"(?:pre|video_pre)?processor_config\.json|chat_template.*")


def write_reference(
    checkpoint: Checkpoint,
    plan: SurgeryPlan,
    delta: Delta,
    folder: Path,
    tower: str | None = None,
) -> tuple[Transfer, ...]:
    """Write base and connector into an empty folder as the reference code saves them.

    `delta` are the tensors of the plan's delta; others than the connector replace the base's.
    Raises what reference_checkpoint raises, and CheckpointError for a write that fails.
    """
    shown = reference_checkpoint(checkpoint, plan, delta, tower)
    return write_checkpoint(shown, folder, {}, shown.config_text)


def reference_checkpoint(
    checkpoint: Checkpoint, plan: SurgeryPlan, delta: Delta, tower: str | None = None
) -> Adopted:
    """Return base and connector as the reference's checkpoint, presented.

    `tower` is the name by which the reference code shall load the vision tower; by default the one
    an original names, or the public tower of the same sizes. Raises PlanError for a connector,
    tower or language model that the reference code does not have.
    """
    if plan.architecture == "mini_gemini":
        return mini_gemini_checkpoint(checkpoint, plan, delta, tower)
    siglip = plan.anatomy.tower.kind == "siglip_vision_model"
    _require_known(checkpoint, plan, siglip=siglip)
    config = reference_config(checkpoint, plan, tower_name(checkpoint, plan, tower), siglip=siglip)
    kept = plan.anatomy.feature_layer if siglip else plan.anatomy.tower.depth
    groups = [
        [
            item
            for name in file.header.tensors
            if (item := _presented(checkpoint, plan, delta, name, kept)) is not None
        ]
        for file in checkpoint.weights
    ]
    source = checkpoint
    if isinstance(checkpoint, Adopted) and checkpoint.adoption is not None:
        source = checkpoint.adoption.source
    adoption = Adoption(source, "reference", class_name(checkpoint.config))
    side = [name for name in source.side_files if not _PROCESSOR.fullmatch(name)]
    return present(adoption, groups, config, {}, side)


def _require_known(checkpoint: Checkpoint, plan: SurgeryPlan, *, siglip: bool) -> None:
    problem = _unknown_model(checkpoint, plan) or _unknown_connector(plan, siglip=siglip)
    if problem is not None:
        raise PlanError(
            f"the reference code cannot run this model: {problem}",
            hint="use --form stock or --form delta, or --layers where the tower has those states",
        )


def _unknown_model(checkpoint: Checkpoint, plan: SurgeryPlan) -> str | None:
    anatomy = plan.anatomy
    if plan.architecture not in ("llava", "llava_next") or anatomy.language_model not in CLASSES:
        return f"it has no {plan.architecture} with a {anatomy.language_model} language model"
    if anatomy.tower.kind not in ("clip_vision_model", "siglip_vision_model"):
        return f"it has no {anatomy.tower.kind} tower"
    if len(anatomy.feature_layers) != 1:
        return "it reads one hidden state as the feature"
    if checkpoint.config.get("projector_hidden_act", "gelu") != "gelu":
        return "its projector has a GELU"
    return None


def _unknown_connector(plan: SurgeryPlan, *, siglip: bool) -> str | None:
    layout, wanted = plan.layout, reference_blocks(plan.kind, siglip=siglip)
    if wanted is None or layout.pool > 1 or layout.normed or layout.mixed:
        return f"it has no {plan.kind} connector with these options"
    if wanted != layout.groups:
        states = " | ".join(describe_layers(block) for block in wanted)
        return f"its {plan.kind} reads hidden states {states}"
    if plan.kind == "sti" and plan.architecture == "llava_next":
        return "its sti fails on images that are cut into tiles"
    if siglip and plan.anatomy.dropped_tokens:
        return "it reads every token of a SigLIP tower"
    return None


def _presented(
    checkpoint: Checkpoint, plan: SurgeryPlan, delta: Delta, name: str, kept: int
) -> Presented | None:
    """Return a tensor under the reference's name; None for one it does not save."""
    renamed = reference_name(name)
    block = re.match(re.escape(INSIDE) + r"encoder\.layers\.(\d+)\.", renamed)
    if (block and int(block[1]) >= kept) or renamed.startswith(f"{INSIDE}head."):
        return None
    if name == plan.anatomy.projector.sites[0].weight and plan.layout.axis == "channel":
        return widened(checkpoint, delta, name, renamed)
    own = checkpoint.presented[name] if isinstance(checkpoint, Adopted) else None
    # The original's own rows: what was padded for transformers is not the reference's.
    stored = own.origin.tensors[own.tensor] if own and renamed in WORDS else None
    if name in delta:
        new = delta[name]
        shape = stored.shape if stored else new.shape
        return Presented(renamed, new.dtype, shape, checkpoint, name, lambda: cut_rows(new, shape))
    if own is None:
        return Presented.renamed(checkpoint, name, renamed)
    if own.made is None or stored:
        return Presented.renamed(own.origin, own.tensor, renamed)
    return Presented(renamed, own.dtype, own.shape, own.origin, own.tensor, own.made)
