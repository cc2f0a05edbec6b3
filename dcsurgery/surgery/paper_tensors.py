"""Tensors of a reference form: W and D side by side, rows that were padded cut off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.rewrite import NewTensor
from dcsurgery.connectors.folding import encode, streamed_rows
from dcsurgery.originals.adopted import Presented
from dcsurgery.surgery.plan_file import CONNECTOR_TENSOR
from dcsurgery.surgery.planned_tensors import tensor_rows

Delta = Mapping[str, NewTensor]


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
