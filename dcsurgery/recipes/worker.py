"""One of the processes that train a recipe's stage: python -m dcsurgery.recipes.worker JOB.json.

accelerate's launcher starts them. Lines that begin with NEWS are for the one who asked for it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dcsurgery.errors import DcSurgeryError
from dcsurgery.recipes.launch import NEWS, PID


def main() -> int:
    """Carry out the training that a file describes; the exit code is the process's."""
    from dcsurgery.recipes.steps import often
    from dcsurgery.training.finetune import finetune_connector
    from dcsurgery.training.settings import TrainingSettings

    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_bytes())
    first = os.environ.get("RANK", "0") == "0"

    def say(line: str) -> None:
        if first:
            print(f"{NEWS}{line}", flush=True)

    say(f"{PID}{os.getpid()}")
    tell = often(say)
    settings = TrainingSettings(**job.pop("settings"))
    try:
        finetune_connector(
            **job,
            settings=settings,
            progress=lambda step, steps, words: tell(f"step {step} of {steps}, {words}"),
            tell=say,
        )
    except DcSurgeryError as error:
        print(f"error: {error}\nhint: {error.hint}", flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
