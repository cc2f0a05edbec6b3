"""The portable form: a complete checkpoint that brings the code of its connector along.

`modeling/modeling_dense_connector.py`, one constant file, makes stock classes of transformers read
`[W | D]`, stored under W's own name: code that does not know the connector stops at that shape,
so nothing can load the folder as the unmodified base. What differs between models is data in
config.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from math import prod
from pathlib import Path

from dcsurgery import modeling
from dcsurgery.anatomy import Anatomy, Site
from dcsurgery.architectures import Config, find_architecture
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.headers import DTYPE_BITS, TensorEntry
from dcsurgery.checkpoint.rewrite import NewTensor
from dcsurgery.connectors import connector_shapes
from dcsurgery.features import FeatureLayout
from dcsurgery.surgery.plan_file import (
    CONNECTOR_PREFIX,
    CONNECTOR_TENSOR,
    SurgeryPlan,
    TensorRecord,
)

CODE_FILE = "modeling_dense_connector.py"
CONFIG_KEY = "dense_connector"
VERSION = 1
# Names of the connector's other tensors in a portable file, beside the first matrix.
EXTRA = {name: f"dense_{name}" for name in ("mix", "norm_weight", "norm_bias")}
HEADS = "ForConditionalGeneration"
# Heads that transformers has no inner model of: nothing that AutoModel could load.
ALONE = ("Llama4ForConditionalGeneration",)


def portable_problem(config: Config, layout: FeatureLayout) -> str | None:
    """Return why a model cannot have a portable form; None where it can."""
    name = str((config.get("architectures") or [""])[0])
    architecture = find_architecture(config)
    if not architecture.portable:
        return f"{architecture.name} is not among the families that it is written for"
    if not name.endswith(HEADS):
        return f"{name} is not called ...{HEADS}, so its inner model's class is not known"
    if config.get("auto_map"):
        return "the base brings code of its own (auto_map), which the form would have to replace"
    if layout.changes_tokens:
        return "the base's processor cannot be told of another number of image tokens there"
    return None


@cache
def code_text() -> str:
    """Return the text of the code file that every portable folder holds."""
    return (Path(modeling.__file__).parent / CODE_FILE).read_text(encoding="utf-8")


def code_digest() -> str:
    """Return the code file's SHA-256."""
    return hashlib.sha256(code_text().encode()).hexdigest()


def joined_shape(checkpoint: Checkpoint, site: Site, columns: int) -> list[int]:
    """Return the shape of [W | D] as it is stored: [out, in + columns], or its transpose."""
    shape = checkpoint.tensors[site.weight].shape
    if _transposed(site):
        return [shape[0] + columns, shape[1]]
    return [shape[0], prod(shape[1:]) + columns]


def _transposed(site: Site) -> bool:
    """Whether the matrix is a bare parameter [in, out] instead of a module's weight."""
    return _parameter(site) != "weight"


def _parameter(site: Site) -> str:
    return site.weight.rpartition(".")[2]


def portable_config(checkpoint: Checkpoint, anatomy: Anatomy, layout: FeatureLayout) -> Config:
    """Return the keys of config.json that a portable form sets."""
    config = checkpoint.config
    head = config["architectures"][0]
    made, inner = f"Dense{head}", f"Dense{head.removesuffix(HEADS)}Model"
    module = CODE_FILE.removesuffix(".py")
    heads = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForVision2Seq")
    shapes = connector_shapes(anatomy, layout)
    columns = anatomy.feature_width * len(layout.blocks)
    return {
        "architectures": [made],
        "auto_map": {
            **({} if head in ALONE else {"AutoModel": f"{module}.{inner}"}),
            **{auto: f"{module}.{made}" for auto in heads},
        },
        CONFIG_KEY: {
            "version": VERSION,
            "groups": [list(block.layers) for block in layout.blocks],
            "towers": [list(paths) for paths in anatomy.tower.paths],
            "depth": anatomy.tower.depth,
            "projector": anatomy.projector.module,
            "sites": [_site(checkpoint, site, columns) for site in anatomy.projector.sites],
            "extra": {EXTRA[n]: list(shape) for n, shape in shapes.items() if n in EXTRA},
            "arrange": find_architecture(config).steps(anatomy, config),
        },
    }


def _site(checkpoint: Checkpoint, site: Site, columns: int) -> Config:
    entry: TensorEntry = checkpoint.tensors[site.weight]
    transposed = _transposed(site)
    return {
        "module": site.module,
        "parameter": _parameter(site),
        "transposed": transposed,
        "kept": entry.shape[0] if transposed else prod(entry.shape[1:]),
        "shape": joined_shape(checkpoint, site, columns),
    }


def extra_name(plan: SurgeryPlan, name: str) -> str:
    """Return what a portable file calls one of the connector's tensors beside D."""
    first = plan.anatomy.projector.sites[0]
    return first.weight.removesuffix(_parameter(first)) + EXTRA[name]


def extra_records(plan: SurgeryPlan, checkpoint: Checkpoint) -> list[TensorRecord]:
    """Return the records of tensors that only a portable file has, in the first matrix's file."""
    home = checkpoint.file_of(plan.anatomy.projector.sites[0].weight).name
    return [
        TensorRecord(name=extra_name(plan, name), file=home, dtype=item.dtype, shape=item.shape)
        for item in plan.delta
        if (name := item.name.removeprefix(CONNECTOR_PREFIX)) in EXTRA
    ]


def joined_tensors(
    checkpoint: Checkpoint, plan: SurgeryPlan, delta: Mapping[str, NewTensor]
) -> dict[str, NewTensor]:
    """Return every [W | D] of a plan, and the connector's other tensors, by name in the file."""
    made, start = {}, 0
    matrix = delta[CONNECTOR_TENSOR]
    columns = matrix.shape[1]
    for site in plan.anatomy.projector.sites:
        entry: TensorEntry = checkpoint.tensors[site.weight]
        own = delta.get(site.weight)
        base = own.chunks if own else partial(checkpoint.tensor_chunks, site.weight)
        item = DTYPE_BITS[entry.dtype] // 8
        part = (start * columns * item, (start + site.out_features) * columns * item)
        added = _Part(matrix.chunks, *part)
        shape = tuple(joined_shape(checkpoint, site, columns))
        chunks: Callable[[], Iterable[bytes]] = (
            _Stacked(base, added, columns, item)
            if _transposed(site)
            else _SideBySide(base, added, prod(entry.shape[1:]) * item, columns * item)
        )
        made[site.weight] = NewTensor(site.weight, entry.dtype, shape, chunks)
        start += site.out_features
    for name in EXTRA:
        tensor = delta.get(CONNECTOR_PREFIX + name)
        if tensor is not None:
            new = extra_name(plan, name)
            made[new] = NewTensor(new, tensor.dtype, tensor.shape, tensor.chunks)
    return made


def first_columns(whole: Checkpoint, record: TensorRecord) -> Iterator[bytes]:
    """Yield the bytes of W, the first part of a joined matrix."""
    item = DTYPE_BITS[record.dtype] // 8
    rows, kept = (record.base_shape or record.shape)[0], prod(record.base_shape or record.shape)
    if record.shape[0] != rows:  # transposed: D lies behind W
        yield from _Part(partial(whole.tensor_chunks, record.name), 0, kept * item)()
        return
    width = kept // rows * item
    for row in _in_pieces(whole.tensor_chunks(record.name), record.shape[1] * item):
        yield row[:width]


class _Part:
    """Bytes [start, stop) of a stream."""

    def __init__(self, chunks: Callable[[], Iterable[bytes]], start: int, stop: int) -> None:
        self._chunks, self._start, self._stop = chunks, start, stop

    def __call__(self) -> Iterator[bytes]:
        at = 0
        for chunk in self._chunks():
            kept = chunk[max(0, self._start - at) : max(0, self._stop - at)]
            at += len(chunk)
            if kept:
                yield kept


class _SideBySide:
    """The rows of two matrices, each row of the first followed by the second's."""

    def __init__(
        self,
        left: Callable[[], Iterable[bytes]],
        right: Callable[[], Iterable[bytes]],
        left_bytes: int,
        right_bytes: int,
    ) -> None:
        self._sides = ((left, left_bytes), (right, right_bytes))

    def __call__(self) -> Iterator[bytes]:
        rows = (_in_pieces(chunks(), size) for chunks, size in self._sides)
        for left, right in zip(*rows, strict=True):
            yield left + right


class _Stacked:
    """A transposed matrix [in, out] followed by the transpose of another, [out, columns]."""

    def __init__(
        self,
        above: Callable[[], Iterable[bytes]],
        below: Callable[[], Iterable[bytes]],
        columns: int,
        item: int,
    ) -> None:
        self._above, self._below, self._columns, self._item = above, below, columns, item

    def __call__(self) -> Iterator[bytes]:
        import numpy as np

        yield from self._above()
        raw = np.frombuffer(b"".join(self._below()), dtype=f"u{self._item}")
        yield raw.reshape(-1, self._columns).T.tobytes()


def _in_pieces(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Cut a stream into pieces of `size` bytes."""
    held = b""
    for chunk in chunks:
        held += bytes(chunk)
        at = 0
        while len(held) - at >= size:
            yield held[at : at + size]
            at += size
        held = held[at:]
    if held:
        yield held
