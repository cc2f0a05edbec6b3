"""What trainings, editors and systems leave in a model's folder, and nobody means to pass on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NAMED = 6
_FOLDERS = re.compile(
    r"wandb|runs|logs?|mlruns|mlflow|lightning_logs|tensorboard|tb_logs|outputs|__pycache__"
    r"|checkpoint-\d+|global_step\d+|tmp-checkpoint-\d+|\.[\w.-]+|node_modules"
)
_FILES = re.compile(
    r"trainer_state\.json|training_args\.(bin|json)|(optimizer|scheduler|scaler)\.(pt|bin)"
    r"|(rng_state|random_states)[\w.-]*|events\.out\.tfevents\..*|zero_to_fp32\.py|latest"
    r"|nohup\.out|slurm-.*\.(out|err)|.*\.(log|swp|swo|bak|orig|pyc)|.*~|#.*#|\._.*"
    r"|Thumbs\.db|desktop\.ini|\.(?!gitattributes|gitignore|dcsurgery\.json)[\w.-]+"
)


def is_leftover(name: str) -> bool:
    """Return whether a file, by its posix path in the folder, is not part of a model."""
    *folders, file = name.split("/")
    return _FILES.fullmatch(file) is not None or any(map(_FOLDERS.fullmatch, folders))


def describe_leftovers(names: Sequence[str]) -> str:
    """Return how many files these are, and their names: a folder's once, with its number."""
    counts = Counter(name if "/" not in name else name.partition("/")[0] + "/" for name in names)
    told = [f"{top} ({n})" if top.endswith("/") else top for top, n in sorted(counts.items())]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{files} of a training, an editor or the system: {', '.join(told[:NAMED])}{more}"
