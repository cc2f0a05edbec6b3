"""Published Dense Connector checkpoints: the surgery was done before training, by widening.

HJYao00/DenseConnector reads [feature | group 1 | group 2] in `mm_projector.0` and names the
connector in the config (dense_connector.py, `mm_dense_connector_type`). The first columns are
presented as the projector of an ordinary LLaVA, the others as the connector beside it:
`[W | D][x; g] = W x + D g`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dcsurgery.connectors.folding import ITEM_BYTES
from dcsurgery.errors import AnatomyError
from dcsurgery.originals.adopted import InstalledConnector, Presented

KEY = "mm_dense_connector_type"
# Hidden states as the reference numbers them in its code, whatever the tower's depth.
_CLIP = {
    "dci": (tuple(range(12)), tuple(range(12, 24))),
    "sci": ((7,), (15,)),
    "sti": ((7,), (15,)),
}
_SIGLIP = {**_CLIP, "dci": (tuple(range(13)), tuple(range(13, 26)))}
ANCHORS = {"clip": 23, "siglip": 26}


def reference_blocks(kind: str, *, siglip: bool) -> tuple[tuple[int, ...], ...] | None:
    """Return the hidden states that the reference code joins for a kind, None for another kind."""
    return (_SIGLIP if siglip else _CLIP).get(kind)


def connector_kind(config: dict[str, Any]) -> str | None:
    """Return the connector a config names, None for an ordinary LLaVA."""
    kind = config.get(KEY)
    return None if kind in (None, "none", "") else str(kind)


def split(
    first: Presented, config: dict[str, Any], width: int, depth: int, *, siglip: bool
) -> tuple[Presented, InstalledConnector | None]:
    """Return the projector's first matrix [out, width] and the connector the checkpoint has.

    `first` is the stored matrix, `width` the tower's, `depth` its blocks. Raises AnatomyError when
    config and matrix disagree.
    """
    kind = connector_kind(config)
    blocks = None if kind is None else reference_blocks(kind, siglip=siglip)
    if kind is not None and blocks is None:
        raise AnatomyError(
            f"{KEY} is {kind!r}; the reference has sti, sci and dci",
            hint="compare config.json with the original model",
        )
    count = 1 if blocks is None or kind == "sti" else 1 + len(blocks)
    if len(first.shape) != 2 or first.shape[1] != count * width:
        raise AnatomyError(
            f"{first.tensor} has shape {list(first.shape)}, but a tower of {width} channels with "
            f"{KEY} {kind!r} needs {count * width} columns",
            hint="compare config.json with the tensors; it may be mixed from two models",
        )
    if config.get("mm_hidden_size", count * width) != count * width:
        raise AnatomyError(
            f"mm_hidden_size is {config['mm_hidden_size']!r}, but {first.tensor} reads "
            f"{count * width} channels",
            hint="compare config.json with the tensors; it may be mixed from two models",
        )
    if kind is None or blocks is None:
        return first, None
    if max(max(block) for block in blocks) > depth:
        raise AnatomyError(
            f"{KEY} {kind!r} reads hidden state {blocks[-1][-1]}, the tower has {depth} blocks",
            hint="the reference code cannot run this model either; check mm_vision_tower",
        )
    if kind == "sti":
        return first, InstalledConnector(kind, blocks, None)
    narrow = replace(first, shape=(first.shape[0], width), made=lambda: columns(first, 0, width))
    return narrow, InstalledConnector(kind, blocks, lambda: columns(first, width, count * width))


def columns(item: Presented, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of some columns of a stored matrix, row after row."""
    if item.dtype not in ITEM_BYTES:
        raise AnatomyError(
            f"{item.tensor} is quantised (dtype {item.dtype})",
            hint="convert the unquantised model first, then quantise the result",
        )
    size = ITEM_BYTES[item.dtype]
    row, held = item.shape[1] * size, b""
    for chunk in item.origin.tensor_chunks(item.tensor):
        held += chunk
        whole = len(held) // row * row
        kept = (held[at + start * size : at + stop * size] for at in range(0, whole, row))
        yield b"".join(kept)
        held = held[whole:]
