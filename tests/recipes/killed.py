"""Run a recipe over and over, killed at each step in turn, then once to its end.

Forks from a process that has imported everything: a kill is a real one and costs no start-up.
Prints one JSON object: per killed run the exit code and the step that died, then the last run.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path


def run(name: str, changes: tuple[str, ...], work: Path, victim: str | None) -> None:
    from dcsurgery.recipes import runner

    stamp = runner.write_stamp

    def dying(folder: Path, found: runner.Stamp) -> None:
        if found.step == victim:  # its work is done, and nobody knows
            os.kill(os.getpid(), signal.SIGKILL)
        stamp(folder, found)

    runner.write_stamp = dying
    done = runner.run_recipe(name, changes=changes, work_dir=work)
    states = {step.name: step.state for step in done.steps}
    (work / f"states-{victim}.json").write_text(json.dumps(states))


def forked(name: str, changes: tuple[str, ...], work: Path, victim: str | None) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(name, changes, work, victim)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(name: str, work: str, *changes: str) -> None:
    # Imported before the first fork, for every child.
    importlib.import_module("dcsurgery.evaluation.runner")
    importlib.import_module("dcsurgery.training.finetune")
    from dcsurgery.recipes.runner import read_source
    from dcsurgery.recipes.smoke import shrink
    from dcsurgery.recipes.steps import build_steps

    steps = [step.name for step in build_steps(shrink(read_source(name, changes).recipe))]
    codes = {step: forked(name, changes, Path(work), step) for step in steps}
    last = forked(name, changes, Path(work), None)
    states = json.loads((Path(work) / "states-None.json").read_text())
    print(json.dumps({"codes": codes, "last": last, "states": states}))


if __name__ == "__main__":
    main(*sys.argv[1:])
