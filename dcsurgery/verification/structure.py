"""Byte-level checks: what the plan did not name is the base's, what it names is as planned."""

from __future__ import annotations

import json
import re
from pathlib import Path

from dcsurgery.checkpoint.contents import CONFIG, INDEX, Checkpoint, WeightFile
from dcsurgery.checkpoint.digests import digest, file_bytes, same_bytes, tensor_bytes
from dcsurgery.checkpoint.headers import Header, read_header
from dcsurgery.errors import DcSurgeryError
from dcsurgery.surgery.base_model import check_base
from dcsurgery.surgery.convert import edit_config
from dcsurgery.surgery.delta_readme import BEGIN, CARD
from dcsurgery.surgery.plan_file import (
    DELTA_FILE,
    DELTA_FOLDER,
    PLAN_FILE,
)
from dcsurgery.surgery.portable import CODE_FILE, code_digest
from dcsurgery.surgery.processor_changes import planned_processor
from dcsurgery.surgery.processor_fit import PROCESSOR_FILE
from dcsurgery.verification.consistency import contradictions
from dcsurgery.verification.folded import fold_check
from dcsurgery.verification.pair import Pair, same_file
from dcsurgery.verification.report import Check, judge
from dcsurgery.verification.trained import ADAPTER_CHECK, adapter_check, trained_check

DELTA_CHECK = "connector is as planned"


def structure_checks(pair: Pair, *, deep: bool) -> list[Check]:
    """Return the byte-level checks of a pair. Nothing is compared with a base that is another."""
    checks = [_base_check(pair)]
    if not checks[0].passed:
        return checks
    if deep:
        checks.append(_hub_check(pair.base))
    checks += [_delta_check(pair), _layout_check(pair)]
    if pair.plan.training:
        checks.append(trained_check(pair.plan, pair.base))
    if pair.plan.training or pair.plan.adapter is not None:
        checks.append(adapter_check(pair.plan, pair.folder))
    if pair.plan.form == "portable":
        checks.append(_code_check(pair))
    if pair.stock is not None:
        checks += [
            _tensors_check(pair, pair.stock, deep),
            _config_check(pair, pair.stock),
            _side_files_check(pair, pair.stock),
        ]
        # The fold is made from the delta again: without a sound one there is nothing to compare.
        sound = (DELTA_CHECK, ADAPTER_CHECK)
        if all(check.passed for check in checks if check.name in sound):
            checks.append(fold_check(pair.plan, pair.folder, pair.base, pair.stock))
    return checks


def _base_check(pair: Pair) -> Check:
    try:
        check_base(pair.plan, pair.base)
        problems = contradictions(pair.plan, pair.base)
    except DcSurgeryError as error:
        problems = [error.message]
    measured = f"config, {len(pair.plan.base.files)} headers, {len(pair.plan.relies_on)} tensors"
    return judge("base is the plan's base", problems, measured, "equal")


def _hub_check(base: Checkpoint) -> Check:
    """Compare cached Hub files with the SHA-256 the Hub names them by."""
    problems, compared = [], 0
    for file in base.weights if base.is_local else ():
        path = base.whole_file(file.name)
        published = path.resolve().name if path else ""
        if path and re.fullmatch(r"[0-9a-f]{64}", published):
            compared += 1
            if digest(file_bytes(path)) != published:
                problems.append(f"{file.name} is not the file the Hub published")
    measured = f"{compared} of {len(base.weights)} weight files carry a digest"
    return judge("base files match the Hub", problems, measured, "equal where known")


def _code_check(pair: Pair) -> Check:
    """Compare the code that the folder brings along with the file that dcsurgery ships."""
    path = pair.folder / CODE_FILE
    found = digest(file_bytes(path)) if path.is_file() else None
    problems = []
    if found is None:
        problems = [f"{CODE_FILE} is missing"]
    elif found != code_digest():
        problems = [f"{CODE_FILE} is not the file that this version of dcsurgery ships"]
    elif found != pair.plan.code_sha256:
        problems = [f"{PLAN_FILE} names another {CODE_FILE}"]
    return judge("code file", problems, f"sha256 {str(found)[:12]}", "the shipped file")


def _delta_check(pair: Pair) -> Check:
    path = pair.folder / DELTA_FILE
    problems = []
    # What else a training changed is in the weight files of a stock form, see fold_check.
    stated = {record.name: record for record in pair.plan.delta if record.file == DELTA_FILE}
    try:
        header = read_header(path)
    except DcSurgeryError as error:
        return judge(DELTA_CHECK, [error.message], "unreadable", "equal")
    if set(header.tensors) != set(stated):
        problems.append(f"{DELTA_FILE} does not hold the tensors {PLAN_FILE} names")
    else:
        for name, record in stated.items():
            entry = header.tensors[name]
            if [entry.dtype, list(entry.shape)] != [record.dtype, record.shape]:
                problems.append(f"{name} is {entry.dtype} {list(entry.shape)}")
            elif digest(tensor_bytes(path, header, name)) != record.sha256:
                problems.append(f"{name} has other values than planned")
    zero = not problems and all(_is_zero(path, header, name) for name in stated)
    state = "all zero" if zero else "not zero: the model differs from its base"
    return judge(DELTA_CHECK, problems, f"{len(stated)} tensor(s) hashed, {state}", "equal")


def _is_zero(path: Path, header: Header, name: str) -> bool:
    return not any(chunk.strip(b"\0") for chunk in tensor_bytes(path, header, name))


def _tensors_check(pair: Pair, stock: Checkpoint, deep: bool) -> Check:
    changed = {record.name for record in pair.plan.changed}
    added = {record.name for record in pair.plan.changed if record.base_shape is None}
    problems = [
        f"{name} is only in the {'base' if name in pair.base.tensors else 'output'}"
        for name in sorted(set(pair.base.tensors) ^ (set(stock.tensors) - added))
    ]
    compared = 0
    for file in pair.base.weights if not problems else ():
        names = [name for name in file.header.tensors if name not in changed]
        compared += len(names)
        if not same_file(pair, stock, file.name, deep=deep):
            problems += _compare_metadata(stock, file)
            problems += _compare_tensors(pair.base, stock, file, names)
    measured = f"{compared} tensors byte-identical" if not problems else f"{len(problems)} differ"
    return judge("every other tensor", problems, measured, "all but the planned ones")


def _compare_metadata(stock: Checkpoint, file: WeightFile) -> list[str]:
    """Compare __metadata__: older transformers refuse a file without its format."""
    found = [other for other in stock.weights if other.name == file.name]
    same = not found or found[0].header.metadata == file.header.metadata
    return [] if same else [f"the metadata of {file.name} differ from the base"]


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
        if not same_bytes(base.tensor_chunks(name), stock.tensor_chunks(name)):
            problems.append(f"{name} differs from the base")
    return problems


def _config_check(pair: Pair, stock: Checkpoint) -> Check:
    wanted = json.loads(edit_config(pair.base, pair.plan))
    keys = {*wanted, *stock.config}
    problems = [
        f"{key} is {stock.config.get(key)!r}"
        for key in sorted(keys)
        if key not in wanted or key not in stock.config or wanted[key] != stock.config[key]
    ]
    changed = ", ".join(pair.plan.config_changes) or "nothing"
    return judge("config.json", problems, f"{changed} changed", "the plan's keys only")


def _layout_check(pair: Pair) -> Check:
    """Check that loaders find what they should: every tensor once, in a delta none at all."""
    name, limit = "file layout", "loaders read every tensor once"
    if pair.broken is not None:
        return judge(name, [pair.broken], "unreadable", limit)
    if pair.stock is None:
        files = [CONFIG, INDEX, *(file.name for file in pair.base.weights)]
        found = [name for name in files if pair.holds(name)]
        problems = [f"{item} would be loaded without the connector" for item in found]
        return judge(name, problems, "no base files", "nothing that loads as the base")
    index = pair.stock.index
    if index is None:
        return Check(name, True, "one weight file", limit)
    total = sum(entry.nbytes for entry in pair.stock.tensors.values())
    stated = index["metadata"].get("total_size")
    problems = [] if stated == total else [f"{INDEX} says {stated} bytes, the tensors have {total}"]
    return judge(name, problems, f"{len(pair.stock.weights)} shards, {total} bytes", limit)


def _side_files_check(pair: Pair, stock: Checkpoint) -> Check:
    found = {*stock.side_files, *stock.left_out}
    aside = _publishing_files(pair.folder)
    ours = {name for name in found if not name.startswith(f"{DELTA_FOLDER}/")} - aside
    planned = {}
    if pair.plan.processor_changes:
        planned = {PROCESSOR_FILE: planned_processor(pair.base, pair.plan)}
    theirs = {*pair.base.side_files, *planned} - aside
    ours -= {CODE_FILE} if pair.plan.form == "portable" else set()
    problems = [f"{name} is missing" for name in sorted(theirs - ours)]
    problems += [f"{name} was added" for name in sorted(ours - theirs)]
    for name in sorted(ours & theirs):
        wanted = planned.get(name) or pair.base.read_file(name)
        if digest([wanted]) != digest([stock.read_file(name)]):
            told = "is not as planned" if name in planned else "differs from the base"
            problems.append(f"{name} {told}")
    limit = "byte-identical" + (f", {PROCESSOR_FILE} as planned" if planned else "")
    return judge("side files", problems, f"{len(theirs)} files", limit)


def _publishing_files(folder: Path) -> set[str]:
    """Files that a Hub repository has of its own: git's, and the card that `push` wrote."""
    names = {".gitattributes"}
    card = folder / CARD
    if card.is_file() and BEGIN in card.read_text(encoding="utf-8", errors="replace"):
        names.add(CARD)
    return names
