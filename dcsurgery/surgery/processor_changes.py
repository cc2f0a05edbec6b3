"""The processor's side of a surgery: a base that miscounts, a connector that counts otherwise."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import Architecture, named
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.errors import PlanError
from dcsurgery.features import FeatureLayout
from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.surgery.processor_fit import (
    PROCESSOR_FILE,
    fit_processor,
    read_object,
    template_notes,
)

# What AutoProcessor and AutoTokenizer read, beside the model's own files.
PROCESSOR_FILES = (
    PROCESSOR_FILE, "preprocessor_config.json", "video_preprocessor_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*",
    "merges.txt", "spiece.model", "sentencepiece*.model", "additional_chat_templates/*",
)  # fmt: skip


def processor_files(checkpoint: Checkpoint) -> list[str]:
    """Return the side files that make up the base's processor."""
    return [
        name
        for name in checkpoint.side_files
        if any(fnmatchcase(name, pattern) for pattern in PROCESSOR_FILES)
    ]


def plan_processor(
    checkpoint: Checkpoint, architecture: Architecture, anatomy: Anatomy, layout: FeatureLayout
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the keys of processor_config.json that change, as {"from", "to"}, and notes.

    Raises PlanError when the family cannot take the connector.
    """
    if layout.changes_tokens:
        _check_tokens(architecture, anatomy, layout)
    fit = fit_processor(checkpoint, architecture, anatomy)
    notes = [*(fit.notes if fit else ()), *template_notes(checkpoint)]
    before = read_object(checkpoint, PROCESSOR_FILE)
    if layout.changes_tokens and not before and not (fit and fit.words):
        tokens = layout.count_tokens(anatomy.image_tokens)
        told = f"the base has no {PROCESSOR_FILE}: repeat the image token {tokens} times yourself"
        return {}, [*notes, told]
    after = edit_processor(checkpoint, architecture, anatomy, layout)
    changed = {
        key: {"from": before.get(key), "to": value}
        for key, value in after.items()
        if before.get(key) != value
    }
    return changed, notes


def _check_tokens(architecture: Architecture, anatomy: Anatomy, layout: FeatureLayout) -> None:
    wanted = ["sti"] if layout.axis == "token" else []
    wanted += ["pool"] if layout.pool > 1 else []
    if layout.axis == "token" and len(anatomy.feature_layers) > 1:
        raise PlanError(
            "--connector sti appends tokens of single hidden states, but this model's projector "
            f"reads {len(anatomy.feature_layers)} hidden states side by side",
            hint="use dci, sci or mix",
        )
    for name in wanted:
        option = "--connector sti" if name == "sti" else "--pool 2"
        if architecture.processor is None or name not in architecture.token_connectors:
            raise PlanError(
                f"{option} changes the number of image tokens, which {architecture.name} "
                "cannot be told",
                hint="use dci, sci or mix without --pool",
            )
        if anatomy.variable_resolution or anatomy.image_tokens != anatomy.tower.grid**2:
            raise PlanError(
                f"{option} needs a square grid of patch tokens; this model gives the projector "
                f"{anatomy.image_tokens} tokens for a grid of side {anatomy.tower.grid}"
                + (" and takes images of any size" if anatomy.variable_resolution else ""),
                hint="use dci, sci or mix without --pool",
            )


def edit_processor(
    checkpoint: Checkpoint, architecture: Architecture, anatomy: Anatomy, layout: FeatureLayout
) -> dict[str, Any]:
    """Return the base's processor_config.json as it counts the connector's image tokens."""
    fit = fit_processor(checkpoint, architecture, anatomy)
    words = {**read_object(checkpoint, PROCESSOR_FILE), **(fit.words if fit else {})}
    if architecture.processor is None or not layout.changes_tokens:
        return words
    return architecture.processor(words, anatomy, layout)


def planned_processor(checkpoint: Checkpoint, plan: SurgeryPlan) -> bytes:
    """Return processor_config.json as a plan with processor_changes has it, keys in their order."""
    architecture = named(plan.architecture)
    content = edit_processor(checkpoint, architecture, plan.anatomy, plan.layout)
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
