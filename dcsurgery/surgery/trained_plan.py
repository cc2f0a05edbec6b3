"""The plan of a complete checkpoint that holds what was trained, in whatever form."""

from __future__ import annotations

from collections.abc import Iterator

from dcsurgery.architectures import Form, named
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import digest
from dcsurgery.errors import PlanError
from dcsurgery.features import stock_layers
from dcsurgery.surgery.plan import (
    as_portable,
    config_changes,
    cost,
    loader_of,
    matrix_shapes,
    rewritten,
    stock_problem,
)
from dcsurgery.surgery.plan_file import CONNECTOR_PREFIX, DELTA_FILE, SurgeryPlan, TensorRecord


def as_complete(
    checkpoint: Checkpoint, plan: SurgeryPlan, form: Form, *, merge: bool
) -> SurgeryPlan:
    """Return the plan of the stock or portable form of what was trained in any form.

    `merge` puts the adapter into the weights. Trained tensors outside the projector, which can be
    gigabytes, are kept in the weight files alone: their records in `delta` name those. Raises
    PlanError where the family has no such form for the connector.
    """
    architecture, anatomy = named(plan.architecture), plan.anatomy
    problem = stock_problem(architecture, anatomy, plan.layout) if form == "stock" else None
    if problem is not None:
        raise PlanError(
            f"{problem}, so there is no stock form",
            hint="export it with --form portable, or keep the delta, which dcsurgery.load loads",
        )
    layers = stock_layers(plan.layout, anatomy.feature_layers) if form == "stock" else None
    adapter = plan.adapter
    if adapter is not None:
        adapter = adapter.model_copy(update={"merged": merge})
    new, flops = cost(architecture, checkpoint, anatomy, plan.layout, layers)
    after = plan.model_copy(
        update={
            "form": form,
            "stock_layers": list(layers) if layers else None,
            "config_changes": config_changes(architecture, checkpoint.config, layers),
            "adapter": adapter,
            "new_parameters": new,
            "extra_flops_per_image": flops,
            "loader": loader_of(architecture, form),
        }
    )
    after = after.model_copy(
        update={
            "changed": list(_changed(checkpoint, after)),
            "delta": [_placed(checkpoint, after, record) for record in plan.delta],
        }
    )
    return as_portable(checkpoint, after) if form == "portable" else after


def as_reference(plan: SurgeryPlan) -> SurgeryPlan:
    """Return the plan of the reference form: what is loaded by which code, as convert says it."""
    loader = loader_of(named(plan.architecture), "reference")
    return plan.model_copy(update={"form": "reference", "stock_layers": None, "loader": loader})


def merged_tensors(plan: SurgeryPlan) -> set[str]:
    """Return the tensors of a stock form that have the adapter in them."""
    if plan.adapter is None or not plan.adapter.merged:
        return set()
    return set(plan.adapter.targets.values())


def _changed(checkpoint: Checkpoint, plan: SurgeryPlan) -> Iterator[TensorRecord]:
    architecture = named(plan.architecture)
    shapes = matrix_shapes(architecture, checkpoint, plan.anatomy, plan.layout, plan.form)
    own = {r.name: r for r in plan.delta if not r.name.startswith(CONNECTOR_PREFIX)}
    for name in dict.fromkeys([*shapes, *own, *sorted(merged_tensors(plan))]):
        known = own[name].base_sha256 if name in own else plan.relies_on.get(name)
        found = known or digest(checkpoint.tensor_chunks(name))
        record = rewritten(checkpoint, name, shapes.get(name))
        yield record.model_copy(update={"base_sha256": found})


def _placed(checkpoint: Checkpoint, plan: SurgeryPlan, record: TensorRecord) -> TensorRecord:
    """Return a record of the delta with the file of a complete checkpoint that holds the tensor."""
    inside = {*plan.anatomy.projector.tensors, *merged_tensors(plan)}
    own = record.name.startswith(CONNECTOR_PREFIX) or record.name in inside
    file = DELTA_FILE if own else checkpoint.file_of(record.name).name
    return record.model_copy(update={"file": file})
