"""Stamps: which steps are done, with which inputs, and what came of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.copying import replace_text
from dcsurgery.checkpoint.digests import digest, file_bytes
from dcsurgery.surgery.plan_file import DELTA_FILE, DELTA_FOLDER

FOLDER = "stamps"
_SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS = f"{DELTA_FOLDER}/**/*.safetensors"


@dataclass(frozen=True)
class Stamp:
    """A finished step: the hash of its inputs, what it found, SHA-256 of what it left behind."""

    step: str
    inputs_sha256: str
    result: dict[str, Any]
    outputs: dict[str, str]
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)


def hash_inputs(step: str, inputs: dict[str, Any], parents: list[str]) -> str:
    """SHA-256 of a step's name, its inputs and the hashes of the steps it builds on."""
    text = json.dumps([step, inputs, parents], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe_output(work: Path, output: str | None) -> dict[str, str]:
    """Return the SHA-256 of the files that stand for an output: a report, or a delta's weights.

    A model is told by the weights of its delta (`verify` compares a stock form with them); plans
    and reports hold times and paths, which no second run repeats.
    """
    if output is None:
        return {}
    place = work / output
    names = [output] if place.is_file() else [f"{output}/{name}" for name in _telling(place)]
    return {name: digest(file_bytes(work / name)) for name in names if (work / name).is_file()}


def _telling(folder: Path) -> list[str]:
    if (folder / DELTA_FILE).is_file():
        return [path.relative_to(folder).as_posix() for path in sorted(folder.glob(WEIGHTS))]
    return [path.name for path in sorted(folder.glob("*.json"))]


def write_stamp(work: Path, stamp: Stamp) -> None:
    """Write a stamp whole: a killed run leaves the old one or none."""
    folder = work / FOLDER
    replace_text(folder / f"{stamp.step}.json", json.dumps(asdict(stamp), indent=2) + "\n")
    (folder / f"{stamp.step}.begun").unlink(missing_ok=True)


def begin(work: Path, step: str, inputs_sha256: str, unfinished: str | None = None) -> bool:
    """Note that a step begins; return whether it was begun before with the same inputs.

    What it left `unfinished` with other inputs is cleared first: nothing can go on with it.
    """
    folder = work / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f"{step}.begun"
    before = mark.read_text() if mark.is_file() else ""
    if before == inputs_sha256:
        return True
    if unfinished is not None:
        _clear(work / unfinished)
    mark.write_text(inputs_sha256)
    return False


def _clear(place: Path) -> None:
    """Remove the answers or the workspace of a training. Raises OutputExistsError for others'."""
    if place.is_dir():
        from dcsurgery.training.workspace import Workspace, check_workspace

        check_workspace(place.with_suffix(""), resume=False, overwrite=True)
        Workspace(place, resumes=False).clear()
    elif place.exists():
        from dcsurgery.evaluation.answers import check_folder

        check_folder(place.parent)
        place.unlink()


def is_ours(work: Path, step: str) -> bool:
    """Return whether a step has run in this folder, to its end or not."""
    begun = work / FOLDER / f"{step}.begun"
    text = begun.read_text(errors="replace") if begun.is_file() else ""
    return read_stamp(work, step) is not None or _SHA256.fullmatch(text) is not None


def merged_versions(stamps: Iterable[Stamp]) -> dict[str, str]:
    """Return the versions that steps ran with; "a and b" where a run was taken up with another."""
    found: dict[str, list[str]] = {}
    for stamp in stamps:
        for name, number in stamp.versions.items():
            found.setdefault(name, []).append(number)
    return {name: " and ".join(dict.fromkeys(numbers)) for name, numbers in found.items()}


def read_stamp(work: Path, step: str) -> Stamp | None:
    """Return the stamp of a step, None when there is no readable one."""
    try:
        return Stamp(**json.loads((work / FOLDER / f"{step}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_done(work: Path, step: str, inputs_sha256: str, output: str | None) -> Stamp | None:
    """Return the stamp of a step that need not run again: same inputs, outputs still there."""
    stamp = read_stamp(work, step)
    if stamp is None or stamp.inputs_sha256 != inputs_sha256:
        return None
    return stamp if describe_output(work, output) == stamp.outputs else None
