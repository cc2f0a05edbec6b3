"""OUT.training/: where a training keeps its checkpoints and log until OUT is whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dcsurgery.checkpoint.destination import absolute_output
from dcsurgery.checkpoint.written import AWAY, clear, foreign, require_ours
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.training.checkpoints import CHECKPOINT, is_saved, latest_checkpoint
from dcsurgery.training.feeding import rank
from dcsurgery.training.logs import LOG_FILE

MARK = "dcsurgery-training"
BAD_FILE = "bad_rows.jsonl"
_LORA = re.compile(r"lora(/adapter_(config\.json|model\.safetensors)|/README\.md)?")
# What a tracker writes (--report-to tensorboard) is neither in the way nor ours to remove.
TRACKED = "runs/"


@dataclass(frozen=True)
class Workspace:
    """The folder beside an output; `resumes` when a training that stopped there goes on."""

    folder: Path
    resumes: bool

    @property
    def lora(self) -> Path:
        """Where the adapter is put together."""
        return self.folder / "lora"

    @property
    def bad_rows(self) -> Path:
        """Rows that turned out bad on the way, one JSON object per line."""
        return self.folder / BAD_FILE

    def clear(self) -> None:
        """Remove what is ours in it, and itself when that was all: the training is over."""
        if rank() == 0 and self.folder.is_dir():
            clear(self.folder, _ours)


def training_folder(output: Path) -> Path:
    """Return the folder beside an output in which its training is kept."""
    output = absolute_output(output)
    return output.with_name(output.name + ".training")


def _ours(name: str, path: Path | None) -> str | None:
    """Say whether a training wrote a file of its folder."""
    top, _, below = name.partition("/")
    if CHECKPOINT.fullmatch(top):
        return None if not below or is_saved(below) else ""
    return None if _LORA.fullmatch(name) or name in (MARK, LOG_FILE, BAD_FILE) else ""


def check_workspace(output: Path, *, resume: bool, overwrite: bool) -> Workspace:
    """Return the workspace of an output, untouched. Raises OutputExistsError or RequestError."""
    folder = training_folder(output)
    real = folder.is_dir() and not folder.is_symlink()
    ours = real and (folder / MARK).is_file()
    if not ours and (folder.is_symlink() or (any(folder.iterdir()) if real else folder.exists())):
        raise OutputExistsError(
            f"{folder} is in the way and dcsurgery did not make it",
            hint=AWAY,
        )
    found = foreign(folder, _ours) if ours and not resume else []
    require_ours(folder, [name for name in found if not name.startswith(TRACKED)])
    checkpoint = latest_checkpoint(folder) if ours else None
    if checkpoint is not None and not (resume or overwrite):
        raise OutputExistsError(
            f"{folder} holds a training that stopped after step {checkpoint.name.split('-')[1]}",
            hint="go on with --resume, or start anew with --overwrite",
        )
    if resume and overwrite:
        raise RequestError(
            "--resume goes on with a training and --overwrite starts a new one",
            hint="choose one of them",
        )
    return Workspace(folder, resume and checkpoint is not None)


def open_workspace(workspace: Workspace) -> None:
    """Make the folder, empty unless a training goes on; the first process does it for all."""
    if rank() != 0:
        return
    if not workspace.resumes:
        workspace.clear()
    workspace.folder.mkdir(parents=True, exist_ok=True)
    (workspace.folder / MARK).touch()
