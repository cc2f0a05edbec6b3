"""What a verification will take, said before it starts: bytes to read, memory, time. All rough."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.connectors.folding import ITEM_BYTES
from dcsurgery.verification.pair import Pair, same_file

# A plain machine: multiply-adds and bytes in a second, from its disk and from the Hub.
_COMPUTED, _READ, _SENT = 2e10, 5e8, 3e7
# Python, torch and transformers, before anything is loaded.
_RUNTIME = 600_000_000


@dataclass(frozen=True)
class Cost:
    """Bytes to `read`, of which `remote` come from the Hub, bytes of memory at once, seconds."""

    read: int
    remote: int
    memory: int
    seconds: float


def estimate_cost(pair: Pair, *, logits: bool = False) -> Cost:
    """Return what verifying a pair takes, from headers alone."""
    plan, base = pair.plan, pair.base
    modules = [f".{module}." for module, _ in plan.anatomy.tower.paths]
    names = [n for n in base.tensors if any(part in f".{n}" for part in modules)]
    seen = {*names, *plan.anatomy.projector.tensors} & base.tensors.keys()
    reads = [(base, sum(base.tensors[name].nbytes for name in seen))]
    if pair.stock is not None:
        reads.append((pair.stock, reads[0][1]))
        for file in base.weights:
            if not same_file(pair, pair.stock, file.name, cheap=True):
                reads += [(base, file.size), (pair.stock, file.size)]
    if logits:
        reads += [(side, _size(side)) for side in (base, pair.stock) if side is not None]
    numbers = sum(math.prod(base.tensors[name].shape) for name in seen)
    width = ITEM_BYTES.get(plan.anatomy.dtype, 2)
    memory = _RUNTIME + numbers * (4 + width) + (_size(base) if logits else 0)
    # Base and branch as stored, branch and formula in fp32, and the fold.
    passes = 2 if pair.stock is None else 3
    computed = passes * numbers * max(plan.anatomy.tower.grid**2, 1)
    remote, local = _sum(reads, False), _sum(reads, True)
    seconds = 10 + computed / _COMPUTED + local / _READ + remote / _SENT
    return Cost(local + remote, remote, memory, seconds)


def _size(checkpoint: Checkpoint) -> int:
    return sum(file.size for file in checkpoint.weights)


def _sum(reads: Iterable[tuple[Checkpoint, int]], local: bool) -> int:
    return sum(size for checkpoint, size in reads if checkpoint.is_local == local)
