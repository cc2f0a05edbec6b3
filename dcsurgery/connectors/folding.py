"""Delta + base -> the stock first matrix, in row chunks so that memory stays flat.

The mean of M states followed by a matrix block B is one matrix over all M states: every state gets
B / M (arXiv 2405.13800 eq. 3-4 are linear up to the projector's first matrix). Columns that fall on
the same state are added, today's feature included. Sums are fp32 and cast once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dcsurgery.features import Columns, FeatureLayout

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

# Rows of a matrix in order, as float32 arrays [rows, columns].
Rows = Callable[[], Iterator["Array"]]

CHUNK_ROWS = 64
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def decode(raw: bytes | memoryview, dtype: str) -> Array:
    """Return safetensors bytes as a flat float array (float64 for F64, else float32)."""
    import numpy as np

    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    values = np.frombuffer(raw, kind)
    return values.astype("<f4") if dtype == "F16" else values


def encode(values: Array, dtype: str) -> bytes:
    """Return a float array as safetensors bytes, rounded to nearest even."""
    import numpy as np

    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<f4"}[dtype]
    # As torch does: what is too large for the dtype becomes infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(values, kind)
    if dtype != "BF16":
        return cast.tobytes()
    bits = cast.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = np.isnan(values)
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()


def streamed_rows(chunks: Callable[[], Iterable[bytes]], dtype: str, shape: Sequence[int]) -> Rows:
    """Return the rows of a matrix whose bytes come in chunks of any size; 1-D: one per value."""
    columns = (*shape, 1)[1]
    step = CHUNK_ROWS * columns * ITEM_BYTES[dtype]

    def rows() -> Iterator[Array]:
        held = bytearray()
        for chunk in chunks():
            held += chunk
            whole = len(held) // step * step
            for start in range(0, whole, step):
                yield decode(bytes(held[start : start + step]), dtype).reshape(-1, columns)
            del held[:whole]
        if held:
            yield decode(bytes(held), dtype).reshape(-1, columns)

    return rows


def constant_rows(shape: Sequence[int], value: float) -> Rows:
    """Return rows that hold one value; a 1-D shape gives one row per value."""
    out, columns = (*shape, 1)[:2]

    def rows() -> Iterator[Array]:
        import numpy as np

        for start in range(0, out, CHUNK_ROWS):
            yield np.full((min(CHUNK_ROWS, out - start), columns), value, "<f4")

    return rows


def uniform_rows(shape: Sequence[int], fan_in: int, seed: int, name: str) -> Rows:
    """Return rows drawn as torch.nn.Linear draws them: U(-b, b) with b = fan_in ** -0.5.

    Weights and biases share the bound. A 1-D shape gives one row per value. The stream depends on
    seed and tensor name only.
    """
    out, columns = (*shape, 1)[:2]

    def rows() -> Iterator[Array]:
        import zlib

        import numpy as np

        draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
        for start in range(0, out, CHUNK_ROWS):
            unit = draw.random((min(CHUNK_ROWS, out - start), columns), dtype=np.float32)
            yield (2 * unit - 1) * np.float32(fan_in**-0.5)

    return rows


def learned_shares(layout: FeatureLayout, logits: Sequence[float]) -> list[list[float]]:
    """Return the softmax of mix's logits [all states], block by block."""
    shares = []
    for span in layout.spans:
        values = [math.exp(value - max(logits[span])) for value in logits[span]]
        shares.append([value / sum(values) for value in values])
    return shares


def fold_rows(
    base: Rows,
    delta: Rows,
    layout: FeatureLayout,
    columns: Columns,
    width: int,
    shares: Sequence[Sequence[float]] | None = None,
) -> Rows:
    """Return the rows of the stock matrix [out, columns.total].

    `base` is W [out, old columns], `delta` is D [out, len(blocks) * width]; `shares` are the
    weights of the states inside their blocks, equal when None.
    """

    def rows() -> Iterator[Array]:
        import numpy as np

        for old, new in zip(base(), delta(), strict=True):
            folded = np.zeros((len(old), columns.total), np.result_type(old, new))
            for index, block in enumerate(layout.blocks):
                part = new[:, index * width : (index + 1) * width]
                if shares is None:
                    part = part / len(block.layers)
                for position, layer in enumerate(block.layers):
                    share = part if shares is None else part * np.float32(shares[index][position])
                    folded[:, columns.states[layer]] += share
            for source, target in columns.base:
                folded[:, target] += old[:, source]
            yield folded

    return rows


def row_range(rows: Rows, start: int, stop: int) -> Rows:
    """Return rows start..stop-1, in the chunks that a matrix of that size has."""

    def part() -> Iterator[Array]:
        import numpy as np

        held: list[Array] = []
        at, wanted = 0, min(CHUNK_ROWS, stop - start)
        for chunk in rows():
            own = chunk[max(start - at, 0) : max(stop - at, 0)]
            at += len(chunk)
            while len(own):
                room = wanted - sum(map(len, held))
                held.append(own[:room])
                own = own[room:]
                if sum(map(len, held)) == wanted:
                    yield np.concatenate(held) if len(held) > 1 else held[0]
                    held = []
            if at >= stop:
                break
        if held:
            yield np.concatenate(held)

    return part


def rounded(rows: Rows, dtype: str) -> Rows:
    """Return the rows as a file of `dtype` would give them back."""
    return lambda: (decode(encode(c, dtype), dtype).reshape(c.shape) for c in rows())


def encoded(rows: Rows, dtype: str) -> Callable[[], Iterable[bytes]]:
    """Return a chunk source for the writer: the rows as safetensors bytes."""
    return lambda: (encode(chunk, dtype) for chunk in rows())
