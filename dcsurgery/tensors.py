"""The tensors a plan writes: the connector's own, drawn or constant, and folded first matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dcsurgery.architectures import named
from dcsurgery.checkpoint.adopted import Adopted
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.rewrite import NewTensor
from dcsurgery.errors import PlanError
from dcsurgery.folding import (
    ITEM_BYTES,
    Rows,
    constant_rows,
    encoded,
    fold_rows,
    rounded,
    row_range,
    stored_rows,
    uniform_rows,
)
from dcsurgery.records import CONNECTOR_PREFIX, CONNECTOR_TENSOR, SurgeryPlan, TensorRecord


def delta_rows(plan: SurgeryPlan, checkpoint: Checkpoint) -> dict[str, Rows]:
    """Return the rows of every tensor of a plan's delta, by name, as its file holds them."""
    if plan.init == "published":
        return {record.name: _published(checkpoint, record) for record in plan.delta}
    return {record.name: rounded(_draw(plan, record), record.dtype) for record in plan.delta}


def _published(checkpoint: Checkpoint, record: TensorRecord) -> Rows:
    """Return the rows of the connector that a checkpoint has already."""
    connector = checkpoint.connector if isinstance(checkpoint, Adopted) else None
    if connector is None or connector.rows is None or record.name != CONNECTOR_TENSOR:
        raise PlanError(
            f"{checkpoint.ref.name} has no {record.name} of its own",
            hint="the plan was made for another checkpoint: convert again",
        )
    read = connector.rows
    return stored_rows(lambda: b"".join(read()), record.dtype, record.shape)


def _draw(plan: SurgeryPlan, record: TensorRecord) -> Rows:
    name = record.name.removeprefix(CONNECTOR_PREFIX)
    if name == "norm_weight":
        return constant_rows(record.shape, 1)
    if plan.init == "preserve" or name in ("mix", "norm_bias"):
        return constant_rows(record.shape, 0)
    if record.dtype not in ITEM_BYTES or len(record.shape) not in (1, 2):
        raise PlanError(
            f"{record.name} ({record.dtype} {record.shape}) is no matrix or bias that can be drawn",
            hint="keep the projector with --init preserve",
        )
    anatomy = plan.anatomy
    # The reference draws one wide first matrix: base and new columns share its fan-in.
    for site in anatomy.projector.sites:
        if name == "weight" or record.name.startswith(site.weight.removesuffix("weight")):
            wide = site.in_features
            if plan.axis == "channel":
                wide += anatomy.feature_width * len(plan.blocks)
            return uniform_rows(record.shape, wide, plan.seed, record.name)
    return uniform_rows(record.shape, _fan_in(plan, record), plan.seed, record.name)


def _fan_in(plan: SurgeryPlan, record: TensorRecord) -> int:
    """Columns of the matrix a later projector tensor belongs to (a bias shares its weight's)."""
    matrix = record.name.removesuffix("bias").removesuffix("weight") + "weight"
    shape = next((item.shape for item in plan.delta if item.name == matrix), record.shape)
    return shape[-1]


def delta_tensors(plan: SurgeryPlan, checkpoint: Checkpoint) -> dict[str, NewTensor]:
    """Return the tensors of a plan's delta by name."""
    rows = delta_rows(plan, checkpoint)
    return {record.name: _new_tensor(record, rows[record.name]) for record in plan.delta}


def _new_tensor(record: TensorRecord, rows: Rows) -> NewTensor:
    return NewTensor(record.name, record.dtype, tuple(record.shape), encoded(rows, record.dtype))


def stock_tensors(checkpoint: Checkpoint, plan: SurgeryPlan) -> dict[str, NewTensor]:
    """Return the tensors that replace base tensors in the stock form."""
    rows = delta_rows(plan, checkpoint)

    def base_rows(name: str) -> Rows:
        entry = checkpoint.tensors[name]
        return rows.get(name) or stored_rows(
            lambda: checkpoint.read_tensor(name), entry.dtype, entry.shape
        )

    folded = fold_sites(plan, base_rows, rows[CONNECTOR_TENSOR])
    return {
        record.name: _new_tensor(record, folded.get(record.name) or rows[record.name])
        for record in plan.changed
    }


def fold_sites(
    plan: SurgeryPlan,
    base_rows: Callable[[str], Rows],
    matrix: Rows,
    shares: Sequence[Sequence[float]] | None = None,
) -> dict[str, Rows]:
    """Return the folded rows of every first matrix by tensor name.

    `base_rows(name)` gives the rows of a base matrix, `matrix` those of D, `shares` the weights of
    the states inside their blocks (equal when None).
    """
    anatomy = plan.anatomy
    columns = named(plan.architecture).stock_columns(anatomy, plan.stock_layers or ())
    folded, start = {}, 0
    for site in anatomy.projector.sites:
        stop = start + site.out_features
        own = row_range(matrix, start, stop)
        base = base_rows(site.weight)
        folded[site.weight] = fold_rows(
            base, own, plan.layout, columns, anatomy.feature_width, shares
        )
        start = stop
    return folded
