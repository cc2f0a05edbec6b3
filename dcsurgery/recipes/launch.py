"""Start the trainings of a recipe in several processes: accelerate's launcher does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from dcsurgery.checkpoint.copying import replace_text
from dcsurgery.errors import RequestError, TrainingError
from dcsurgery.recipes.schema import Finetune, Recipe
from dcsurgery.serving.engines import free_port

# Begins a line of a worker that is for people, or tells which process the first one is.
NEWS = "::dcsurgery:: "
PID = "pid "
PORT = 29500
TAIL = 15
# How the reference's scripts share the model in each stage (scripts/v1_5/pretrain.sh, finetune.sh
# and finetune_lora.sh of HJYao00/DenseConnector).
REFERENCE = {1: "zero2", 2: "zero3"}
# Seconds between looks at what the first machine has done.
LOOK = 2.0
FLAGS = {
    "zero2": ("--use_deepspeed", "--zero_stage", "2"),
    "zero3": ("--use_deepspeed", "--zero_stage", "3"),
    "fsdp2": (
        *("--use_fsdp", "--fsdp_version", "2", "--fsdp_state_dict_type", "FULL_STATE_DICT"),
        *("--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    ),
}


@dataclass(frozen=True)
class Launch:
    """Where trainings run: `processes` over all machines, of which this one is `machine_rank`.

    None takes what the stage says. `config` is a file of `accelerate config`, which then says how
    processes share the model.
    """

    processes: int | None = None
    machines: int = 1
    machine_rank: int = 0
    main_address: str | None = None
    main_port: int | None = None
    config: Path | None = None

    def of(self, stage: Finetune) -> int:
        """Return how many processes train a stage."""
        return self.processes or stage.processes

    def way(self, stage: Finetune) -> tuple[str, str]:
        """Return how the processes of a stage share the model, and why where the stage says auto.

        auto is the reference's way for the stage; none without a stage of the paper, without
        DeepSpeed, and for what is not trained under sharding.
        """
        if stage.sharding != "auto":
            return stage.sharding, ""
        theirs = REFERENCE.get(stage.stage or 0)
        if self.of(stage) == 1 or theirs is None:
            return "none", ""
        if stage.quantize is not None or stage.precision == "fp16":
            return "none", f"{stage.quantize or stage.precision} is not trained under sharding"
        if not find_spec("deepspeed"):
            return "none", f"DeepSpeed is not installed; the reference takes {theirs}"
        return theirs, f"as the reference in stage {stage.stage}"

    def wanted(self, stage: Finetune) -> bool:
        """Return whether a stage is started by accelerate, not in this process."""
        return self.of(stage) > 1 or self.config is not None

    def command(self, stage: Finetune, job: Path) -> list[str]:
        """Return the command that trains a stage as a job file says."""
        options = ["--num_machines", str(self.machines), "--machine_rank", str(self.machine_rank)]
        if self.config is not None:
            options = ["--config_file", str(self.config), *(options if self.machines > 1 else ())]
            options += ["--num_processes", str(self.processes)] if self.processes else []
        else:
            options += ["--num_processes", str(self.of(stage))]
            options += FLAGS.get(self.way(stage)[0], ("--multi_gpu",))
        if self.way(stage)[0].startswith("zero") and self.machines > 1:
            options += ["--deepspeed_multinode_launcher", "standard"]
        if self.main_address is not None:
            options += ["--main_process_ip", self.main_address]
        port = free_port() if self.machines == 1 else self.main_port or PORT
        options += ["--main_process_port", str(port), "--mixed_precision", "no"]
        options += ["--dynamo_backend", "no", "-m", "dcsurgery.recipes.worker", str(job)]
        return [sys.executable, "-m", "accelerate.commands.launch", *options]


def check_launch(recipe: Recipe, launch: Launch, name: str) -> None:
    """Raise RequestError, before anything runs, for what cannot be started here."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise RequestError(
            "a recipe starts its processes itself, and was started in several",
            hint=f"dcsurgery recipe run {name} --processes {os.environ['WORLD_SIZE']}",
        )
    if launch.machines > 1 and (launch.main_address is None or launch.processes is None):
        raise RequestError(
            f"{launch.machines} machines must know the first one and how many processes there are",
            hint="--main-address HOST --processes N, the same on all of them",
        )
    if not 0 <= launch.machine_rank < launch.machines:
        raise RequestError(
            f"there is no machine {launch.machine_rank} of {launch.machines}",
            hint="--machine-rank counts from 0",
        )
    check_config(launch)
    for number, stage in enumerate(recipe.finetune, start=1):
        if launch.wanted(stage):
            _check_stage(stage, launch, f"finetune-{number}")


def check_config(launch: Launch) -> None:
    """Raise RequestError where the file of `accelerate config` is not there."""
    if launch.config is not None and not launch.config.is_file():
        raise RequestError(f"there is no file {launch.config}", hint="make it: accelerate config")


def check_share(stage: Finetune, launch: Launch, name: str) -> None:
    """Raise RequestError where machines or batches cannot be shared evenly by the processes."""
    count, batch = launch.of(stage), stage.settings().resolved().batch_size or 1
    if count % launch.machines or batch % count:
        raise RequestError(
            f"{name}: {count} processes cannot share {launch.machines} machines and batches of "
            f"{batch} rows evenly",
            hint="use --processes with a number that divides both",
        )


def _check_stage(stage: Finetune, launch: Launch, name: str) -> None:
    check_share(stage, launch, name)
    here, (way, _) = launch.of(stage) // launch.machines, launch.way(stage)
    if launch.config is None and way.startswith("zero") and not find_spec("deepspeed"):
        raise RequestError(f"{name}: sharding {way} needs DeepSpeed", hint="pip install deepspeed")
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise RequestError(
            f"{name}: {here} processes on this machine, which has {gpus} GPUs",
            hint=f"--processes {gpus * launch.machines}",
        )
    if way == "fsdp2" and not gpus and launch.config is None:
        raise RequestError(
            f"{name}: accelerate leaves FSDP out where there is no GPU",
            hint="use zero2, zero3 or none",
        )


def train(
    stage: Finetune, launch: Launch, job: dict[str, Any], file: Path, say: Callable[[str], None]
) -> None:
    """Train a stage in processes of its own: `file` gets the job, a log stands beside it.

    Ctrl-C lets all of them keep a checkpoint and end; a second one ends them at once. Raises
    TrainingError with the end of the log where a process dies.
    """
    replace_text(file, json.dumps(job, indent=1) + "\n")
    try:
        join(stage, launch, file, say)
    finally:
        file.unlink(missing_ok=True)


def join(stage: Finetune, launch: Launch, file: Path, say: Callable[[str], None]) -> None:
    """Be this machine's part of a training that a job file describes; see train()."""
    command, log = launch.command(stage, file), file.with_suffix(".log")
    if launch.machine_rank:
        log = file.with_suffix(f".{launch.machine_rank}.log")
    way, why = launch.way(stage)
    how = f"{launch.of(stage)} processes, sharding: {way}{why and f' ({why})'}"
    if launch.config is not None:
        how = f"processes as {launch.config} says"
    say(f"  {how}, log: {log}")
    last: deque[str] = deque(maxlen=TAIL)
    with open(log, "w", encoding="utf-8") as text, _processes(command) as started:
        for line in started.lines():
            text.write(line)
            text.flush()
            if line.startswith(NEWS + PID):
                started.first = int(line.removeprefix(NEWS + PID))
            elif line.startswith(NEWS):
                say(f"  {line.removeprefix(NEWS).rstrip()}")
            else:
                last.append(line.rstrip())
        code = started.process.wait()
    if code:
        _fail(log, last, say)


def _fail(log: Path, last: Iterable[str], say: Callable[[str], None]) -> NoReturn:
    """Raise a worker's own refusal, or say how the log ends."""
    again = f"the log is {log}; the same command goes on from the last checkpoint"
    lines = log.read_text(encoding="utf-8").splitlines()
    for line, after in pairwise([*lines, ""]):
        if line.startswith("error: ") and after.startswith("hint: "):
            hint = f"{after.removeprefix('hint: ')}; {again}"
            raise TrainingError(line.removeprefix("error: "), hint=hint)
    for line in last:
        say(f"  | {line}")
    raise TrainingError("a training process died", hint=again)


class _Started:
    """The launcher's process, and the first of those it has started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.first: int | None = None

    def lines(self) -> Iterator[str]:
        """Give the lines of all processes as they come."""
        assert self.process.stdout is not None
        yield from self.process.stdout

    def stop(self) -> None:
        """Let the processes end in order: the first one tells the others, and all keep what is."""
        try:
            if self.first is None:
                self.process.terminate()
            else:
                os.kill(self.first, signal.SIGINT)
        except ProcessLookupError:
            pass
        try:
            for _ in self.lines():
                pass
            self.process.wait()
        except KeyboardInterrupt:
            self.process.terminate()
            self.process.wait()


@contextmanager
def _processes(command: list[str]) -> Iterator[_Started]:
    """Start a launcher outside the terminal's reach; whatever ends the block ends its processes."""

    def leave(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGTERM, signal.SIGHUP) if main else ()
    before = {number: signal.signal(number, leave) for number in signals}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pipe |= {"text": True, "errors": "replace", "start_new_session": True}
    try:
        with subprocess.Popen(command, **pipe) as process:
            started = _Started(process)
            try:
                yield started
            finally:
                if process.poll() is None:
                    started.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(
    found: Callable[[], Any],
    file: Path | None = None,
    take_part: Callable[[], None] | None = None,
) -> Any:
    """Return what `found` gives, once it does; meanwhile take part in what a job file asks for."""
    seen: float | None = None
    while (result := found()) is None:
        stamp = file.stat().st_mtime if file is not None and file.is_file() else None
        if take_part is not None and stamp not in (None, seen):
            seen = stamp
            take_part()
        time.sleep(LOOK)
    return result
