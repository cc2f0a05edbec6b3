"""The plan of a stock form that holds what was trained, whatever form it was trained in."""

from __future__ import annotations

from collections.abc import Iterator

from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import digest
from dcsurgery.errors import PlanError
from dcsurgery.features import stock_layers
from dcsurgery.surgery.plan import config_changes, cost, loader_of, rewritten, stock_problem
from dcsurgery.surgery.plan_file import CONNECTOR_PREFIX, DELTA_FILE, SurgeryPlan, TensorRecord


def as_stock(checkpoint: Checkpoint, plan: SurgeryPlan, *, merge: bool) -> SurgeryPlan:
    """Return the plan of the stock form of a delta, or of a stock form whose delta was trained.

    `merge` puts the adapter into the weights. Trained tensors outside the projector, which can be
    gigabytes, are kept in the weight files alone: their records in `delta` name those. Raises
    PlanError where the family has no words for the connector.
    """
    architecture, anatomy = named(plan.architecture), plan.anatomy
    problem = stock_problem(architecture, anatomy, plan.layout)
    if problem is not None:
        raise PlanError(
            f"{problem}, so there is no stock form",
            hint="keep the delta: dcsurgery.load loads it with its base",
        )
    layers = stock_layers(plan.layout, anatomy.feature_layers)
    adapter = plan.adapter
    if adapter is not None:
        adapter = adapter.model_copy(update={"merged": merge})
    new, flops = cost(architecture, checkpoint, anatomy, plan.layout, layers)
    after = plan.model_copy(
        update={
            "form": "stock",
            "stock_layers": list(layers),
            "config_changes": config_changes(architecture, checkpoint.config, layers),
            "adapter": adapter,
            "new_parameters": new,
            "extra_flops_per_image": flops,
            "loader": loader_of(architecture, "stock"),
        }
    )
    return after.model_copy(
        update={
            "changed": list(_changed(checkpoint, after)),
            "delta": [_placed(checkpoint, after, record) for record in plan.delta],
        }
    )


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
    sites = plan.anatomy.projector.sites
    columns = named(plan.architecture).stock_columns(plan.anatomy, plan.stock_layers or ()).total
    shapes = {site.weight: [site.out_features, columns] for site in sites}
    own = {r.name: r for r in plan.delta if not r.name.startswith(CONNECTOR_PREFIX)}
    for name in dict.fromkeys([*shapes, *own, *sorted(merged_tensors(plan))]):
        known = own[name].base_sha256 if name in own else plan.relies_on.get(name)
        found = known or digest(checkpoint.tensor_chunks(name))
        record = rewritten(checkpoint, name, shapes.get(name))
        yield record.model_copy(update={"base_sha256": found})


def _placed(checkpoint: Checkpoint, plan: SurgeryPlan, record: TensorRecord) -> TensorRecord:
    """Return a record of the delta with the file of the stock form that holds the tensor."""
    inside = {*plan.anatomy.projector.tensors, *merged_tensors(plan)}
    own = record.name.startswith(CONNECTOR_PREFIX) or record.name in inside
    file = DELTA_FILE if own else checkpoint.file_of(record.name).name
    return record.model_copy(update={"file": file})
