"""What a probe found, as it is written to probe.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dcsurgery.checkpoint.copying import replace_text
from dcsurgery.checkpoint.destination import check_output
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.evaluation.eval_report import Score
from dcsurgery.surgery.plan_file import BaseRecord
from dcsurgery.surgery.probed_layers import Recommended, read_answer


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StateGain(_Record):
    """The gain of one hidden state alone, in nats per answer token, with its 95 % interval.

    `evidence`: the whole interval lies above what the null controls reach.
    """

    state: int
    gain: Score
    by_type: dict[str, Score] = {}
    evidence: bool = False


class SetGain(_Record):
    """The gain of the blocks of a connector together, as --layers writes them."""

    name: str
    layers: str
    blocks: list[list[int]]
    gain: Score


class Null(_Record):
    """What nothing gains: today's feature again, and states of another picture (`shuffled`).

    `floor` is the largest of their gains, at least a tenth of the report's `smallest`.
    """

    floor: float
    feature: list[StateGain]
    shuffled: list[StateGain]


class ProbeReport(_Record):
    """One probe. Gains are nats per answer token that a step is expected to take off the loss.

    `loss` is the loss today. `sets` are the states that were chosen, and the defaults of dci and
    sci. `expected` is the gain of choosing states as `recommended` was, on rows that had no part in
    the choice; by question type where the data names one. `smallest` is about the smallest gain
    that these rows can tell from chance. `installed` are the blocks of a connector that the model
    was trained with: gains come on top of it, and `recommended` repeats them, because its base is
    what would be converted. `lost` says in words what rows lost on the way.
    """

    schema_version: Literal[1] = 1
    verdict: str
    recommended: Recommended
    expected: Score
    expected_by_type: dict[str, Score] = {}
    smallest: float
    loss: float
    states: list[StateGain]
    null: Null
    sets: list[SetGain]
    model: str
    base: BaseRecord
    architecture: str
    feature_layers: list[int]
    installed: list[list[int]] = []
    data: str
    data_sha256: str
    rows: int
    pictures: int
    answer_tokens: int
    skipped_rows: int
    skipped: dict[str, str] = {}
    rows_with_pictures: int
    rows_without_pictures: int
    layouts: dict[str, int] = {}
    unread_pictures: dict[str, int] = {}
    lost: list[str] = []
    settings: dict[str, str | int | float | bool | None]
    seconds: float
    versions: dict[str, str]


def check_file(path: Path, *, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    """Refuse a file that cannot or must not be written; only one of `ours` is ever replaced.

    Raises OutputExistsError, RequestError or CheckpointError.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder", hint="name a file: -o probe.json")
    if not path.exists() and not path.is_symlink():
        check_output(path, overwrite=False)
    elif not overwrite:
        raise OutputExistsError(f"{path} exists", hint="choose another file, or use --overwrite")
    elif not ours(path):
        raise OutputExistsError(
            f"{path} is no probe's: --overwrite does not replace it", hint="choose another file"
        )


def is_answer(path: Path) -> bool:
    """Return whether a file is the JSON of a probe."""
    try:
        read_answer(path)
    except RequestError:
        return False
    return True


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}", hint="choose another file"
        ) from None
