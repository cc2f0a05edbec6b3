"""What a trial found, as it is written to trial.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dcsurgery.errors import RequestError
from dcsurgery.evaluation.eval_report import Metric, Score
from dcsurgery.surgery.plan_file import BaseRecord

# Arms with new states, the one that a verdict is about first.
RETROFITS = ("chosen", "dci")
Decision = Literal["worth it", "not shown", "do not", "no verdict"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gain(_Record):
    """How much better an arm is than another on the same rows: above zero is better.

    Of a loss it is what is taken off, in nats per answer token. `low` to `high` is the 95 %
    bootstrap interval and `p_value` that of the sign-flip test, both over whole pictures, after
    every row's scores were averaged over the seeds. `seeds` are the gains of each seed alone.
    """

    mean: float
    low: float
    high: float
    p_value: float
    rows: int
    seeds: list[float] = []


class Versus(_Record):
    """An arm against another one. `lost` are the question types whose metric surely fell: interval
    below zero, and p below 0.05 after Holm's correction for the number of types. `doubtful` ones
    have the interval below zero alone. `beats`: the interval lies above zero, every seed's own
    gain does, and no type is lost.
    """

    arm: str
    against: str
    gain: Gain
    by_type: dict[str, Gain] = {}
    loss: Gain
    loss_by_type: dict[str, Gain] = {}
    lost: list[str] = []
    doubtful: list[str] = []
    beats: bool


class TrialRun(_Record):
    """One training of an arm: where it is, how it went, what it cost here, what it scored.

    `seconds` are those of the updates; `peak_memory` bytes of this process or its GPU, None where
    the system does not tell. `weights` are SHA-256 of the tensors that were written.
    """

    seed: int | None
    folder: str
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    seconds: float = 0.0
    eval_seconds: float
    peak_memory: int | None = None
    weights: dict[str, str] = {}
    score: float
    loss: float


class TrialArm(_Record):
    """An arm: the blocks that its connector reads, and its scores averaged over the seeds.

    `variant` is whether the connector is mixed and normed, and its pool.
    """

    name: str
    title: str
    connector: str | None
    blocks: list[list[int]]
    variant: tuple[bool, bool, int] = (False, False, 1)
    new_parameters: int
    trained_parameters: int
    runs: list[TrialRun]
    score: Score
    by_type: dict[str, Score] = {}
    loss: Score
    loss_by_type: dict[str, Score] = {}


class Probed(_Record):
    """What the probe said before: its verdict, whether to operate, and the states it recommends."""

    verdict: str
    operate: bool
    layers: str | None
    expected: Score
    seconds: float


class Example(_Record):
    """A test row that the judged arm and the control answer differently, drawn at random.

    `place` counts the rows of the test from zero.
    """

    place: int
    kind: Literal["won", "lost"]
    id: str
    question: str
    pictures: list[str]
    answers: list[str]
    control: str
    retrofit: str


class Differences(_Record):
    """How many rows the judged arm won and lost against the control with one seed."""

    seed: int
    won: int
    lost: int
    rows: int
    examples: list[Example] = []


class Estimate(_Record):
    """Hours on another device: computed, never measured. `formula` says how."""

    device: str
    hours: float
    flop: float
    formula: str


class TrialReport(_Record):
    """One trial. `judged` is the arm that the verdict is about, fixed before anything is trained;
    `left_out` arms could not be built, with the reason. `projector_sha256` are digests of the
    base's projector by tensor, since models of one family have the same headers.
    `shared_pictures` of the test are in the training data too. Gains and scores are averaged over
    the seeds, row by row, first.
    """

    schema_version: Literal[1] = 1
    verdict: str
    decision: Decision
    judged: str | None
    metric: Metric
    model: str
    base: BaseRecord
    projector_sha256: dict[str, str] = {}
    architecture: str
    data: str
    data_sha256: str
    test: str
    test_sha256: str
    rows: int
    pictures: int
    skipped_rows: int
    shared_pictures: int
    statistics: str
    seeds: list[int]
    probe: Probed | None = None
    left_out: dict[str, str] = {}
    arms: list[TrialArm]
    comparisons: list[Versus]
    differences: list[Differences] = []
    seconds: float
    estimate: Estimate | None = None
    warnings: list[str] = []
    settings: dict[str, str | int | float | bool | None]
    versions: dict[str, str]

    def arm(self, name: str) -> TrialArm | None:
        """Return an arm by its name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def versus(self, arm: str, against: str) -> Versus | None:
        """Return the comparison of two arms."""
        wanted = (arm, against)
        return next((v for v in self.comparisons if (v.arm, v.against) == wanted), None)


def read_trial(path: Path) -> TrialReport:
    """Read what `dcsurgery trial` wrote. Raises RequestError."""
    hint = "`dcsurgery trial MODEL --data DATA --test TEST` writes trial.json into its work folder"
    try:
        if path.exists() and not path.is_file():
            raise RequestError(f"{path} is not a file", hint=hint)
        return TrialReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "its text"
        raise RequestError(f"{path} is no trial: see {where}", hint=hint) from None


def is_trial(path: Path) -> bool:
    """Return whether a file is the JSON of a trial, of this version or another."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.keys() >= {"verdict", "decision", "judged"}
