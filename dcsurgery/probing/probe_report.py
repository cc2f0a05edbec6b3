"""What a probe found, as it is written to probe.json and shown."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dcsurgery.checkpoint.copying import replace_text
from dcsurgery.checkpoint.destination import check_output
from dcsurgery.data.census import Census
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.evaluation.eval_report import Score
from dcsurgery.features import describe_layers
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.surgery.plan_file import BaseRecord
from dcsurgery.surgery.probed_layers import Recommended, read_answer

BAR = 30
LISTED = 3


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


class ProbeReport(Printed, _Record):
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        return self.model_dump(mode="json")

    def show(self, out: Sheet) -> None:
        """Put what was found on a sheet."""
        facts = [
            ("rows", f"{self.rows:,} with {self.pictures:,} pictures{_skipped(self)}"),
            ("images", _pictures(self)),
            ("loss", f"{self.loss:.4f} nats per answer token, {self.answer_tokens:,} tokens"),
            ("reads today", _today(self)),
        ]
        facts += [("lost", "\n".join(self.lost))] if self.lost else []
        out.show(f"probe of {self.model} on {self.data}", "bold")
        out.facts(facts)
        out.heading("expected gain of one hidden state, nats per answer token")
        _draw(self, out)
        out.heading("together")
        rows = [
            (item.name, item.layers, _gain(item.gain), _between(item.gain)) for item in self.sets
        ]
        out.table(("set", "states", "gain", "95 %"), rows, "wlrw")
        if self.recommended.operate and self.expected_by_type:
            out.heading("expected, by question type")
            kinds = self.expected_by_type.items()
            lines = [
                (kind, str(score.rows), _gain(score), _between(score)) for kind, score in kinds
            ]
            out.table(("questions", "rows", "gain", "95 %"), lines, "lrrw")
        out.show()
        out.show(self.verdict, "bold green" if self.recommended.operate else "bold yellow")
        if self.recommended.layers is not None:
            out.facts([("recommended", f"--layers {shlex.quote(self.recommended.layers)}")])


def _draw(report: ProbeReport, out: Sheet) -> None:
    """Print a bar for every state, from shallow to deep, and the controls below."""
    shuffled = max(report.null.shuffled, key=lambda item: item.gain.mean)
    marked = [(item, str(item.state), "" if item.evidence else "no evidence")
              for item in report.states]  # fmt: skip
    marked += [(item, str(item.state), "control: today's feature") for item in report.null.feature]
    marked.sort(key=lambda found: found[0].state)
    marked.append((shuffled, "", f"control: state {shuffled.state} of other pictures"))
    longest = max(1e-12, *(item.gain.mean for item, _, _ in marked))
    rows = [
        (state, _bar(item, longest), _gain(item.gain), _between(item.gain), words)
        for item, state, words in marked
    ]
    out.table(("state", "", "gain", "95 %", ""), rows, "rwrww")


def _bar(item: StateGain, longest: float) -> str:
    return "█" * round(BAR * max(0.0, item.gain.mean) / longest)


def _gain(score: Score) -> str:
    return f"{score.mean:+.4f}"


def _between(score: Score) -> str:
    return f"{score.low:+.4f}..{score.high:+.4f}"


def _today(report: ProbeReport) -> str:
    blocks = "".join(f"; {describe_layers(block)}" for block in report.installed)
    own = f" and, through its connector, {blocks[2:]}" if blocks else ""
    return f"hidden state {describe_layers(report.feature_layers)}{own}"


def _skipped(report: ProbeReport) -> str:
    if not report.skipped_rows:
        return ""
    named = [f"\n{name}: {why}" for name, why in list(report.skipped.items())[:LISTED]]
    return f", {report.skipped_rows} of the data skipped:" + "".join(named)


def _pictures(report: ProbeReport) -> str:
    census = Census(
        report.rows_with_pictures,
        report.rows_without_pictures,
        unread=Counter(report.unread_pictures),
    )
    return f"in all of the data {census.pictures()}"


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
            f"{path} is not a probe's: --overwrite does not replace it", hint="choose another file"
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
