"""What one arm of one tower did, as it is written to result.json."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dcsurgery.checkpoint.copying import replace_text

RESULT = "result.json"


class Outcome(BaseModel):
    """The answers of one arm of one tower, and what is needed to compare arms fairly.

    `answers` are ids of the words answered in the test, `right` whether they are. `data_sha256`
    covers every training batch in order (None without training). `used` is the root mean square of
    what each of the `blocks` adds to the projector's first product, in parts of that product's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tower: str
    arm: str
    seed: int
    steps: int
    data_sha256: str | None
    starts_as_base: bool
    curve: dict[int, float]
    answers: list[int]
    right: list[bool]
    kinds: list[str]
    blocks: list[str]
    used: list[float]
    seconds: float

    def write(self, folder: Path) -> None:
        """Write result.json; it appears whole."""
        replace_text(folder / RESULT, self.model_dump_json())


def read_outcome(folder: Path) -> Outcome | None:
    """Read result.json of a folder, None where there is none."""
    path = folder / RESULT
    return Outcome.model_validate_json(path.read_bytes()) if path.is_file() else None
