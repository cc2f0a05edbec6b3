"""The tensors a plan writes: the connector's own (drawn, constant, stored), folded, [W | D]."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dcsurgery.architectures import named
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.digests import tensor_bytes
from dcsurgery.checkpoint.headers import Header, read_header
from dcsurgery.checkpoint.rewrite import NewTensor
from dcsurgery.connectors.folding import (
    ITEM_BYTES,
    Rows,
    constant_rows,
    encode,
    encoded,
    fold_rows,
    learned_shares,
    row_range,
    streamed_rows,
    uniform_rows,
)
from dcsurgery.errors import MalformedCheckpointError, PlanError
from dcsurgery.originals.adopted import Adopted, Presented
from dcsurgery.surgery.merge_lora import Adapter
from dcsurgery.surgery.plan_file import (
    CONNECTOR_PREFIX,
    CONNECTOR_TENSOR,
    PLAN_FILE,
    AdapterRecord,
    SurgeryPlan,
    TensorRecord,
)
from dcsurgery.surgery.portable import joined_tensors

Delta = Mapping[str, NewTensor]


def _draw(plan: SurgeryPlan, record: TensorRecord) -> Rows:
    name = record.name.removeprefix(CONNECTOR_PREFIX)
    if name == "norm_weight":
        return constant_rows(record.shape, 1)
    if plan.init == "preserve" or name in ("mix", "norm_bias"):
        return constant_rows(record.shape, 0)
    if record.dtype not in ITEM_BYTES or len(record.shape) not in (1, 2):
        raise PlanError(
            f"{record.name} ({record.dtype} {record.shape}) cannot be drawn: it is neither a "
            "matrix nor a bias",
            hint="keep the projector with --init preserve",
        )
    anatomy = plan.anatomy
    # The reference draws one wide first matrix: base and new columns share its fan-in.
    for site in anatomy.projector.sites:
        if name == "weight" or record.name.startswith(site.weight.removesuffix("weight")):
            wide = site.in_features
            if plan.layout.axis == "channel":
                wide += anatomy.feature_width * len(plan.layout.blocks)
            return uniform_rows(record.shape, wide, plan.seed, record.name)
    return uniform_rows(record.shape, _fan_in(plan, record), plan.seed, record.name)


def _fan_in(plan: SurgeryPlan, record: TensorRecord) -> int:
    """Columns of the matrix a later projector tensor belongs to (a bias shares its weight's)."""
    matrix = record.name.removesuffix("bias").removesuffix("weight") + "weight"
    shape = next((item.shape for item in plan.delta if item.name == matrix), record.shape)
    return shape[-1]


def delta_tensors(plan: SurgeryPlan) -> dict[str, NewTensor]:
    """Return the tensors of a delta that nobody has trained yet, by name."""
    return {record.name: _new_tensor(record, _draw(plan, record)) for record in plan.delta}


def planned_delta(checkpoint: Checkpoint, plan: SurgeryPlan) -> dict[str, NewTensor]:
    """Return the tensors of a new plan's delta: drawn, or those the checkpoint has already.

    Raises PlanError for a checkpoint that has none.
    """
    if plan.init != "published":
        return delta_tensors(plan)
    connector = checkpoint.connector if isinstance(checkpoint, Adopted) else None
    given = (
        {} if connector is None or connector.rows is None else {CONNECTOR_TENSOR: connector.rows}
    )
    if given.keys() != {record.name for record in plan.delta}:
        raise PlanError(
            f"{checkpoint.ref.name} does not have the connector that the plan names",
            hint="the plan was made for another checkpoint: convert again",
        )
    return {
        record.name: NewTensor(record.name, record.dtype, tuple(record.shape), given[record.name])
        for record in plan.delta
    }


def stored_delta(folder: Path, plan: SurgeryPlan) -> dict[str, NewTensor]:
    """Return the tensors of a written plan's delta, streamed from the files that hold them.

    Raises CheckpointError when a file is broken or does not hold what the plan says.
    """
    headers: dict[str, Header] = {}
    for record in plan.delta:
        header = headers.setdefault(record.file, read_header(folder / record.file))
        entry = header.tensors.get(record.name)
        if entry is None or (entry.dtype, list(entry.shape)) != (record.dtype, record.shape):
            raise MalformedCheckpointError(
                f"{record.file} does not hold {record.name} as {PLAN_FILE} describes it",
                hint="run `dcsurgery verify` on the folder; it may have to be made again",
            )
    return {
        record.name: NewTensor(
            record.name,
            record.dtype,
            tuple(record.shape),
            _reader(folder / record.file, headers[record.file], record.name),
        )
        for record in plan.delta
    }


def _reader(path: Path, header: Header, name: str) -> Callable[[], Iterable[bytes]]:
    return lambda: tensor_bytes(path, header, name)


def _new_tensor(record: TensorRecord, rows: Rows) -> NewTensor:
    return NewTensor(record.name, record.dtype, tuple(record.shape), encoded(rows, record.dtype))


def tensor_rows(tensor: NewTensor) -> Rows:
    """Return the rows of a tensor to write, as its file will give them back; 1-D: one per value."""
    return streamed_rows(tensor.chunks, tensor.dtype, tensor.shape)


def stock_tensors(
    checkpoint: Checkpoint,
    plan: SurgeryPlan,
    delta: Mapping[str, NewTensor],
    adapter: Adapter | None = None,
) -> dict[str, NewTensor]:
    """Return the tensors that replace base tensors in the stock form of a plan and its delta.

    `adapter` is merged where the plan says so.
    """
    made = _first_matrices(checkpoint, plan, delta)
    merged: dict[str, NewTensor] = {}
    if adapter is not None and plan.adapter is not None and plan.adapter.merged:
        merged = adapted_tensors(checkpoint, plan.adapter, delta, adapter)
    others = {**delta, **merged, **made}
    return {record.name: others[record.name] for record in plan.changed}


def _first_matrices(
    checkpoint: Checkpoint, plan: SurgeryPlan, delta: Mapping[str, NewTensor]
) -> dict[str, NewTensor]:
    """Return every first matrix, folded or joined with D, by its name in the file."""
    if plan.form == "portable":
        return joined_tensors(checkpoint, plan, delta)
    matrix = tensor_rows(delta[CONNECTOR_TENSOR])
    rows_of = partial(_rows_of, checkpoint, delta)
    folded = fold_sites(plan, rows_of, matrix, _shares(plan, delta))
    return {
        record.name: _new_tensor(record, folded[record.name])
        for record in plan.changed
        if record.name in folded
    }


def adapted_tensors(
    checkpoint: Checkpoint,
    record: AdapterRecord,
    delta: Mapping[str, NewTensor],
    adapter: Adapter,
) -> dict[str, NewTensor]:
    """Return every matrix that an adapter adapts with the adapter merged into it.

    Raises MalformedCheckpointError for an adapter of other shapes.
    """
    merged = {}
    for module in adapter.modules:
        name = record.targets[module]
        entry = checkpoint.tensors[name]
        adapter.check(module, entry.shape)
        rows = adapter.merged(module, _rows_of(checkpoint, delta, name))
        merged[name] = NewTensor(name, entry.dtype, entry.shape, encoded(rows, entry.dtype))
    return merged


def _rows_of(checkpoint: Checkpoint, delta: Mapping[str, NewTensor], name: str) -> Rows:
    """Return the rows of a base matrix, or of what a training made of it."""
    if name in delta:
        return tensor_rows(delta[name])
    entry = checkpoint.tensors[name]
    return streamed_rows(lambda: checkpoint.tensor_chunks(name), entry.dtype, entry.shape)


def _shares(plan: SurgeryPlan, delta: Mapping[str, NewTensor]) -> list[list[float]] | None:
    """Return the learned weights of the states in their blocks; None where they are equal."""
    if not plan.layout.mixed:
        return None
    mix = tensor_rows(delta[f"{CONNECTOR_PREFIX}mix"])
    return learned_shares(plan.layout, [float(v) for rows in mix() for v in rows.ravel()])


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


def cut_rows(new: NewTensor, shape: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the bytes of a tensor's first rows."""
    left = replace(new, shape=shape).nbytes
    for chunk in new.chunks():
        if left:
            yield chunk[:left]
            left -= min(left, len(chunk))


def widened(checkpoint: Checkpoint, delta: Delta, name: str, renamed: str) -> Presented:
    """Return [W | D], row by row; D's dtype becomes W's."""
    entry, matrix = checkpoint.tensors[name], delta[CONNECTOR_TENSOR]
    shape = (entry.shape[0], entry.shape[1] + matrix.shape[1])

    def chunks() -> Iterator[bytes]:
        import numpy as np

        base = streamed_rows(lambda: checkpoint.tensor_chunks(name), entry.dtype, entry.shape)
        own = tensor_rows(delta[name]) if name in delta else base
        for left, right in zip(own(), tensor_rows(matrix)(), strict=True):
            yield encode(np.concatenate([left, right], axis=1), entry.dtype)

    return Presented(renamed, entry.dtype, shape, checkpoint, name, chunks)
