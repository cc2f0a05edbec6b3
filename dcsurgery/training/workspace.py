"""OUT.training/: where a training keeps its checkpoints and log until OUT is whole."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dcsurgery.checkpoint.destination import absolute_output
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.training.checkpoints import latest_checkpoint
from dcsurgery.training.feeding import rank

MARK = "dcsurgery-training"
BAD_FILE = "bad_rows.jsonl"


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
        """Remove it: the training is over."""
        if rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def training_folder(output: Path) -> Path:
    """Return the folder beside an output in which its training is kept."""
    output = absolute_output(output)
    return output.with_name(output.name + ".training")


def check_workspace(output: Path, *, resume: bool, overwrite: bool) -> Workspace:
    """Return the workspace of an output, untouched. Raises OutputExistsError or RequestError."""
    folder = training_folder(output)
    ours = folder.is_dir() and (folder / MARK).is_file()
    if folder.exists() and not ours and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise OutputExistsError(
            f"{folder} is in the way and dcsurgery did not make it",
            hint="move it away, or choose another --output",
        )
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
        shutil.rmtree(workspace.folder, ignore_errors=True)
    workspace.folder.mkdir(parents=True, exist_ok=True)
    (workspace.folder / MARK).touch()
