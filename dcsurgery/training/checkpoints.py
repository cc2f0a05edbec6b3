"""Checkpoints of what is trained alone, and what makes a training stop in order.

`checkpoint-N/` holds the trained tensors, the optimiser, the schedule and the random states;
`complete.json` is written last and says of which training they are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from dcsurgery.checkpoint.written import clear
from dcsurgery.errors import RequestError, TrainingError

TRAINED_FILE = "trained.safetensors"
COMPLETE_FILE = "complete.json"
KEPT = 2
CHECKPOINT = re.compile(r"checkpoint-\d+")
# transformers' and accelerate's own files, those of FSDP and DeepSpeed with folders of their own.
_SAVED = re.compile(
    r"rows-\d+\.json|(trained|average|model)\S*\.safetensors(\.index\.json)?|complete\.json|trainer_state\.json"
    r"|training_args\.bin|(optimizer|scheduler|scaler|rng_state|random_states|pytorch_model)[\w.-]*"
    r"|latest|zero_to_fp32\.py|((optimizer|pytorch_model_fsdp)_\d+|global_step\d+)(/[\w.-]+)?"
)


def is_saved(name: str) -> bool:
    """Return whether a file or folder in a checkpoint is one that saving a checkpoint writes."""
    return _SAVED.fullmatch(name) is not None


def save_trained(folder: Path, tensors: Mapping[str, Tensor], file: str = TRAINED_FILE) -> None:
    """Write trained tensors by parameter name, as they are in memory."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / file)


def load_trained(
    folder: Path, model: nn.Module, names: Iterable[str], file: str = TRAINED_FILE
) -> None:
    """Copy a checkpoint's tensors into the parameters of the same names. Raises TrainingError."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in read_trained(folder, names, file).items():
            parameters[name].copy_(tensor)


def read_trained(folder: Path, names: Iterable[str], file: str = TRAINED_FILE) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by parameter name. Raises TrainingError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(folder / file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{folder / file} cannot be read: {str(error)[:100]}",
            hint="remove that folder and resume from the one before",
        ) from None
    if set(tensors) != set(names):
        raise TrainingError(
            f"{folder} holds other tensors than are trained now",
            hint="resume with the settings it was started with, or start anew",
        )
    return tensors


def mark_complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Say that a checkpoint is whole, and of which training it is; older ones go, but for one."""
    with open(folder / COMPLETE_FILE, "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for old in _checkpoints(folder.parent)[:-KEPT]:
        clear(old, lambda name, path: None if is_saved(name) else "")


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder, None when there is none."""
    whole = [path for path in _checkpoints(folder) if (path / COMPLETE_FILE).is_file()]
    return whole[-1] if whole else None


def _checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints in a folder, oldest first."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return sorted((path for path in paths if CHECKPOINT.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return after how many steps a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def check_same(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to resume another training than the one that wrote a checkpoint.

    Raises RequestError, naming what differs.
    """
    try:
        before = json.loads((checkpoint / COMPLETE_FILE).read_bytes())
    except (OSError, ValueError):
        before = {}
    changed = sorted(_differences(before, json.loads(json.dumps(facts))))
    if changed:
        raise RequestError(
            f"{checkpoint.parent} belongs to another training: {', '.join(changed)[:300]}",
            hint="resume with the same model, data and settings, or start anew with --overwrite",
        )


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            name
            for key in {*before, *now}
            for name in _differences(before.get(key), now.get(key), key)
        ]
    if before == now:
        return []
    plain = all(value is None or isinstance(value, str | int | float) for value in (before, now))
    told = plain and path not in ("data", "base")  # these are digests
    return [f"{path or 'everything'} {f'was {before}, is {now}' if told else 'differs'}"]


class Interruption:
    """While entered, the first signal to stop is noted; a second one stops at once."""

    SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in self.SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            self.leave()
        self.number = number

    def leave(self) -> None:
        """Raise what the signal means: KeyboardInterrupt, or SystemExit with 128 + its number."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number is not None:
            raise SystemExit(128 + self.number)
