"""The model that is probed: loaded as finetune loads it, its own connector taken into account."""

from __future__ import annotations

from dataclasses import replace

import torch

from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.connectors.attach import detach
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.originals import open_model, told
from dcsurgery.originals.adopted import Adopted
from dcsurgery.probing.listen import Blocks
from dcsurgery.surgery.plan_file import PLAN_FILE, SurgeryPlan
from dcsurgery.training.job import Request
from dcsurgery.training.start import Start, start


def open_subject(asked: Request) -> tuple[Start, Blocks]:
    """Return a loaded model, and the blocks of a connector that it was trained with.

    A connector that was never trained is taken off: the model computes as its base. Raises
    DcSurgeryError, also for a connector that changes which tokens the projector reads.
    """
    begun = start(replace(asked, connector=_on_the_way(asked)))
    plan = begun.plan
    trained = bool(plan.training) or plan.init == "published"
    _check_plan(plan, trained)
    if not trained:
        detach(begun.model)
    if torch.cuda.is_available() and asked.settings.quantize is None:
        begun.model.to("cuda")
    return begun, plan.layout.blocks if trained else ()


def _on_the_way(asked: Request) -> Connector | None:
    """Return the connector through which an unconverted model is loaded; None for another."""
    if (local_folder(asked.model, asked.revision) / PLAN_FILE).is_file():
        return None
    hints = told(asked.towers, asked.template)
    checkpoint = open_model(asked.model, asked.revision, hints=hints)
    if isinstance(checkpoint, Adopted) and checkpoint.connector is not None:
        return Connector.of(checkpoint.connector.kind)
    # One group exists in any tower; it is taken off again.
    return Connector(groups=1)


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
