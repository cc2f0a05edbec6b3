"""Byte-level checks: what the plan did not name is the base's, what it names is as planned."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dcsurgery.checkpoint.contents import INDEX, Checkpoint, WeightFile, open_checkpoint
from dcsurgery.checkpoint.headers import Header, read_header
from dcsurgery.convert import edit_config, fold_sites
from dcsurgery.errors import CheckpointNotFoundError, DcSurgeryError, MalformedCheckpointError
from dcsurgery.folding import Rows, encoded, learned_shares, stored_rows
from dcsurgery.loading import check_base, open_base
from dcsurgery.plan import (
    CONNECTOR_PREFIX,
    CONNECTOR_TENSOR,
    DELTA_FILE,
    PLAN_FILE,
    SurgeryPlan,
    read_plan,
)
from dcsurgery.verification.report import Check

BLOCK = 8 * 1024 * 1024


@dataclass(frozen=True)
class Pair:
    """A converted folder, its plan and its base; `stock` is None for a delta."""

    folder: Path
    plan: SurgeryPlan
    base: Checkpoint
    stock: Checkpoint | None


def open_pair(folder: Path, against: str | Path | None) -> Pair:
    """Open both sides of a verification.

    Raises CheckpointNotFoundError when the folder or the base is missing, and
    MalformedCheckpointError when a header is broken or the base is another model.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(
            f"there is no folder {folder}", hint="name the folder that `dcsurgery convert` wrote"
        )
    plan = read_plan(folder)
    base = open_base(plan, against)
    stock = open_checkpoint(folder) if plan.form == "stock" else None
    return Pair(folder, plan, base, stock)


def structure_checks(pair: Pair, *, deep: bool) -> list[Check]:
    """Return the byte-level checks of a pair."""
    checks = [_base_check(pair)]
    if deep:
        checks.append(_hub_check(pair.base))
    checks.append(_delta_check(pair))
    if pair.stock is not None:
        checks += [
            _tensors_check(pair, pair.stock, deep),
            _fold_check(pair, pair.stock),
            _config_check(pair, pair.stock),
            _index_check(pair.stock),
            _side_files_check(pair, pair.stock, deep),
        ]
    return checks


def _result(name: str, problems: list[str], measured: str, limit: str) -> Check:
    detail = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if problems[5:] else "")
    return Check(name, not problems, measured, limit, detail)


def _base_check(pair: Pair) -> Check:
    try:
        check_base(pair.plan, pair.base)
        problems = []
    except DcSurgeryError as error:
        problems = [error.message]
    measured = f"config, {len(pair.plan.base.files)} headers, {len(pair.plan.relies_on)} tensors"
    return _result("base is the plan's base", problems, measured, "equal")


def _hub_check(base: Checkpoint) -> Check:
    """Compare cached Hub files with the SHA-256 the Hub names them by."""
    problems, compared = [], 0
    for file in base.weights:
        digest = base.path(file.name).resolve().name
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            compared += 1
            if _digest(_file_bytes(base.path(file.name))) != digest:
                problems.append(f"{file.name} is not the file the Hub published")
    measured = f"{compared} of {len(base.weights)} weight files carry a digest"
    return _result("base files match the Hub", problems, measured, "equal where known")


def _delta_check(pair: Pair) -> Check:
    path = pair.folder / DELTA_FILE
    problems = []
    stated = {record.name: record for record in pair.plan.delta}
    header = read_header(path) if path.is_file() else None
    if header is None or set(header.tensors) != set(stated):
        problems.append(f"{DELTA_FILE} does not hold the tensors {PLAN_FILE} names")
    else:
        for name, record in stated.items():
            entry = header.tensors[name]
            if [entry.dtype, list(entry.shape)] != [record.dtype, record.shape]:
                problems.append(f"{name} is {entry.dtype} {list(entry.shape)}")
            elif _tensor_digest(path, header, name) != record.sha256:
                problems.append(f"{name} has other values than planned")
    return _result("connector is as planned", problems, f"{len(stated)} tensor(s) hashed", "equal")


def _file_bytes(path: Path, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    left = path.stat().st_size - start if length is None else length
    with path.open("rb") as file:
        file.seek(start)
        while left > 0:
            chunk = file.read(min(BLOCK, left))
            if not chunk:
                raise MalformedCheckpointError(
                    f"{path} became shorter while it was being read", hint="run verify again"
                )
            left -= len(chunk)
            yield chunk


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _tensor_digest(path: Path, header: Header, name: str) -> str:
    entry = header.tensors[name]
    return _digest(_file_bytes(path, header.data_start + entry.begin, entry.nbytes))


def _tensors_check(pair: Pair, stock: Checkpoint, deep: bool) -> Check:
    changed = {record.name for record in pair.plan.changed}
    problems = [
        f"{name} is only in the {'base' if name in pair.base.tensors else 'output'}"
        for name in sorted(set(pair.base.tensors) ^ set(stock.tensors))
    ]
    compared = 0
    for file in pair.base.weights if not problems else ():
        names = [name for name in file.header.tensors if name not in changed]
        compared += len(names)
        if not (_same_inode(pair, stock, file.name) and not deep):
            problems += _compare_tensors(pair.base, stock, file, names)
    measured = f"{compared} tensors byte-identical" if not problems else f"{len(problems)} differ"
    return _result("every other tensor", problems, measured, "all but the planned ones")


def _same_inode(pair: Pair, stock: Checkpoint, name: str) -> bool:
    """A hard link is the same file: nothing to read."""
    if name not in {file.name for file in stock.weights}:
        return False
    return os.path.samefile(pair.base.path(name), stock.path(name))


def _compare_tensors(
    base: Checkpoint, stock: Checkpoint, file: WeightFile, names: list[str]
) -> list[str]:
    problems = []
    for name in names:
        other = stock.file_of(name)
        old, new = base.tensors[name], stock.tensors[name]
        if (old.dtype, old.shape) != (new.dtype, new.shape) or other.name != file.name:
            problems.append(f"{name} changed its dtype, shape or file")
            continue
        first = _tensor_digest(base.path(file.name), file.header, name)
        if first != _tensor_digest(stock.path(other.name), other.header, name):
            problems.append(f"{name} differs from the base")
    return problems


def _fold_check(pair: Pair, stock: Checkpoint) -> Check:
    """Fold delta and base again and compare the bytes with what is on disk."""
    problems = []
    again: dict[str, Rows] | None = None
    for record in pair.plan.changed:
        found = stock.tensors.get(record.name)
        if found is None or [found.dtype, list(found.shape)] != [record.dtype, record.shape]:
            problems.append(f"{record.name} is not {record.dtype} {record.shape}")
            continue
        home = stock.file_of(record.name)
        digest = _tensor_digest(stock.path(home.name), home.header, record.name)
        if digest != record.sha256:
            problems.append(f"{record.name} has other values than planned")
            continue
        again = _fold_again(pair) if again is None else again
        rows = again.get(record.name)
        if rows is not None and _digest(encoded(rows, record.dtype)()) != digest:
            problems.append(f"{record.name} is not the fold of its delta")
    shapes = ", ".join(f"{record.base_shape} to {record.shape}" for record in pair.plan.changed)
    return _result("changed tensors are as planned", problems, shapes, "the fold of base + delta")


def _fold_again(pair: Pair) -> dict[str, Rows]:
    path = pair.folder / DELTA_FILE
    header = read_header(path)

    def delta_rows(name: str) -> Rows:
        entry = header.tensors[name]
        start = header.data_start + entry.begin
        shape = (*entry.shape, 1)[:2]
        return stored_rows(
            lambda: b"".join(_file_bytes(path, start, entry.nbytes)), entry.dtype, shape
        )

    def base_rows(name: str) -> Rows:
        if name in header.tensors:
            return delta_rows(name)
        entry = pair.base.tensors[name]
        return stored_rows(lambda: pair.base.read_tensor(name), entry.dtype, entry.shape)

    shares = None
    if pair.plan.mixed:
        logits = [float(v) for rows in delta_rows(f"{CONNECTOR_PREFIX}mix")() for v in rows.ravel()]
        shares = learned_shares(pair.plan.layout, logits)
    return fold_sites(pair.plan, base_rows, delta_rows(CONNECTOR_TENSOR), shares)


def _config_check(pair: Pair, stock: Checkpoint) -> Check:
    wanted = json.loads(edit_config(pair.base, pair.plan))
    keys = {*wanted, *stock.config}
    problems = [
        f"{key} is {stock.config.get(key)!r}"
        for key in sorted(keys)
        if key not in wanted or key not in stock.config or wanted[key] != stock.config[key]
    ]
    changed = ", ".join(pair.plan.config_changes) or "nothing"
    return _result("config.json", problems, f"{changed} changed", "the plan's keys only")


def _index_check(stock: Checkpoint) -> Check:
    if stock.index is None:
        return Check("file layout", True, "one weight file", "loaders read every tensor once")
    total = sum(entry.nbytes for entry in stock.tensors.values())
    stated = stock.index["metadata"].get("total_size")
    problems = [] if stated == total else [f"{INDEX} says {stated} bytes, the tensors have {total}"]
    return _result(
        "file layout", problems, f"{len(stock.weights)} shards, {total} bytes", "index is right"
    )


def _side_files_check(pair: Pair, stock: Checkpoint, deep: bool) -> Check:
    ours = {name for name in stock.side_files if not name.startswith("dense_connector/")}
    problems = [f"{name} is missing" for name in pair.base.side_files if name not in ours]
    problems += [f"{name} was added" for name in sorted(ours - set(pair.base.side_files))]
    for name in sorted(ours & set(pair.base.side_files)):
        first, second = pair.base.path(name), stock.path(name)
        if _digest(_file_bytes(first)) != _digest(_file_bytes(second)):
            problems.append(f"{name} differs from the base")
    return _result("side files", problems, f"{len(pair.base.side_files)} files", "byte-identical")
