"""The model that is probed: loaded as finetune loads it, its own connector taken into account."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dcsurgery.checkpoint.model_ref import fetch, parse_reference
from dcsurgery.connectors.attach import detach
from dcsurgery.errors import CheckpointNotFoundError, PlanError
from dcsurgery.originals import open_model, told
from dcsurgery.originals.adopted import Adopted
from dcsurgery.probing.listen import Blocks
from dcsurgery.surgery.plan_file import PLAN_FILE, SurgeryPlan
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.start import Origin, Start, start


def open_subject(origin: Origin, settings: TrainingSettings) -> tuple[Start, Blocks]:
    """Return a loaded model, and the blocks of a connector that it was trained with.

    A connector that was never trained is taken off: the model computes as its base. Raises
    DcSurgeryError, also for a connector that changes which tokens the projector reads.
    """
    begun = start(replace(origin, connector=_on_the_way(origin)), settings)
    plan = begun.plan
    trained = bool(plan.training) or plan.init == "published"
    _check_plan(plan, trained)
    if not trained:
        detach(begun.model)
    if torch.cuda.is_available() and settings.quantize is None:
        begun.model.to("cuda")
    return begun, plan.layout.blocks if trained else ()


def _on_the_way(origin: Origin) -> dict[str, Any] | None:
    """Return the connector through which an unconverted model is loaded; None for another."""
    folder = fetch(parse_reference(origin.model, origin.revision)).folder
    if folder is None:
        raise CheckpointNotFoundError(
            f"{origin.model} was not found", hint="check the path or the Hub id"
        )
    if (folder / PLAN_FILE).is_file():
        return None
    hints = told(origin.towers, origin.template)
    checkpoint = open_model(origin.model, origin.revision, hints=hints)
    if isinstance(checkpoint, Adopted) and checkpoint.connector is not None:
        return {"connector": checkpoint.connector.kind}
    # One group exists in any tower; it is taken off again.
    return {"connector": "dci", "groups": 1}


def _check_plan(plan: SurgeryPlan, trained: bool) -> None:
    place = plan.base.folder or plan.base.id
    hint = f"probe its base: dcsurgery probe {place} --data DATA"
    if plan.layout.changes_tokens:
        raise PlanError(
            f"this model's {plan.kind} connector changes the image tokens, so that further states "
            "have no place beside what its projector reads",
            hint=hint,
        )
    if plan.init == "paper" and not trained:
        raise PlanError("its connector and projector are random, and not trained yet", hint=hint)
