"""Whether a plan can be what dcsurgery wrote for its base, apart from any bytes."""

from __future__ import annotations

from collections.abc import Iterator

from dcsurgery.anatomy import Anatomy
from dcsurgery.architectures import find_architecture
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import digest
from dcsurgery.connectors import connector_shapes
from dcsurgery.connectors.folding import ITEM_BYTES
from dcsurgery.features import stock_layers
from dcsurgery.originals.adopted import Adopted
from dcsurgery.surgery.plan_file import CONNECTOR_PREFIX, CONNECTOR_TENSOR, PLAN_FILE, SurgeryPlan
from dcsurgery.surgery.portable import extra_records
from dcsurgery.surgery.trained_plan import merged_tensors


def contradictions(plan: SurgeryPlan, base: Checkpoint) -> list[str]:
    """Return what the plan says about its base or its own tensors and cannot be.

    Later checks rely on it: shapes, dtypes and names of the plan's tensors are sound afterwards.
    """
    architecture = find_architecture(base.config)
    anatomy = architecture.dissect(base.config, base.tensors)
    if plan.architecture != architecture.name:
        return [f"{PLAN_FILE} says the base is a {plan.architecture!r}, it is {architecture.name}"]
    if anatomy != plan.anatomy:
        return [f"{PLAN_FILE} describes another anatomy than the base has"]
    foreign = _foreign_connector(plan, base)
    if foreign is not None:
        return [foreign]
    if plan.feature_layers != list(anatomy.feature_layers):
        return [f"{PLAN_FILE} says the base reads hidden states {plan.feature_layers}"]
    layers = list(stock_layers(plan.layout, plan.feature_layers)) if plan.form == "stock" else None
    if plan.stock_layers != layers:
        return [f"{PLAN_FILE} says the output reads {plan.stock_layers}, its blocks need {layers}"]
    return list(_impossible_tensors(plan, base, anatomy))


def _foreign_connector(plan: SurgeryPlan, base: Checkpoint) -> str | None:
    """Say why a plan's connector is not the one its base was trained with; None when it is."""
    installed = base.connector if isinstance(base, Adopted) else None
    if (installed is None) != (plan.init != "published"):
        has = "has no connector" if installed is None else f"has a {installed.kind} connector"
        return f"{PLAN_FILE} says its init is {plan.init}, the base {has} of its own"
    if installed is None:
        return None
    if (plan.kind, plan.layout.groups) != (installed.kind, installed.blocks):
        return f"{PLAN_FILE} describes another connector than the base's own {installed.kind}"
    trained = any(CONNECTOR_TENSOR in record.trained for record in plan.training)
    own = {record.name: record.sha256 for record in plan.delta}.get(CONNECTOR_TENSOR)
    if installed.rows is not None and not trained and digest(installed.rows()) != own:
        return f"{CONNECTOR_TENSOR} is not the base's own connector"
    return None


def _impossible_tensors(plan: SurgeryPlan, base: Checkpoint, anatomy: Anatomy) -> Iterator[str]:
    connector = {
        CONNECTOR_PREFIX + name: list(shape)
        for name, shape in connector_shapes(anatomy, plan.layout).items()
    }
    trained = {name for record in plan.training for name in record.trained}
    known = trained.union(anatomy.projector.tensors) & base.tensors.keys()
    shapes = {name: list(base.tensors[name].shape) for name in known} | connector
    dtypes = {name: base.tensors[name].dtype for name in known}
    for record in plan.delta:
        dtype = dtypes.get(record.name, record.dtype)
        fits = record.shape == shapes.get(record.name) and record.dtype == dtype
        if not fits or dtype not in ITEM_BYTES:
            yield f"{PLAN_FILE} has {record.name} as {record.dtype} {record.shape} in its delta"
    own = {record.name for record in plan.delta}
    changed = {record.name for record in plan.changed}
    if missing := sorted((connector.keys() | trained) - own):
        yield f"{PLAN_FILE} has no {', '.join(missing)} in its delta"
    wanted = {site.weight for site in anatomy.projector.sites} | own - connector.keys()
    if plan.form == "portable":
        wanted |= {record.name for record in extra_records(plan, base)}
    if plan.form in ("stock", "portable") and changed != wanted | merged_tensors(plan):
        yield f"{PLAN_FILE} changes {', '.join(sorted(changed)) or 'nothing'}"
