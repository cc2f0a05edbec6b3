"""Train in several processes at once, as torchrun starts them, but imports are paid once.

python -m tests.training.two_processes BASE OUT PROCESSES [DATA]

With DATA, finetune_connector trains the language model on it, and what it counted is written down.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dcsurgery.connectors.request import Connector
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.training.settings import TrainingSettings
from tests.architectures.cases import TinyModel, make_case
from tests.architectures.inputs import llava_inputs
from tests.training.tasks import make_rows, run

# Rows with and without images: what one process has no gradient for, another may have.
VALUES = {"train": "full", "lr": 1e-3, "projector_lr": 1e-3, "micro_batch": 1, "max_steps": 6}
# Inside the second epoch: twelve rows are three steps.
STOP = 5


def work(base: Path, folder: Path, rank: int = 0, stop_at: int | None = None) -> None:
    """Train and save what came out; with `stop_at`, stop after that step and go on from there."""
    case = make_case(TinyModel(base, llava_inputs), Connector("dci"))
    model = case.attached()
    rows = make_rows(case.tiny, model, 12)
    rows.rows[3]["labels"][:, :-1] = -100
    rows.rows[7] = make_rows(case.tiny, model, 1, images=0).rows[0]
    if stop_at is not None:
        with suppress(KeyboardInterrupt):
            run(case, case.attached(), rows, folder, watch=lambda row: stop(row, stop_at), **VALUES)
    run(case, model, rows, folder, resume=stop_at is not None, **VALUES)
    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    save_file(values, folder / f"rank-{rank}.safetensors")


def count_lost(base: Path, folder: Path, data: Path, rank: int) -> None:
    """Train on a data file and write what every process has counted."""
    settings = TrainingSettings(
        train="full", lr=1e-3, batch_size=4, micro_batch=2, max_steps=2, max_length=80, max_bad=40
    )
    done = finetune_connector(base, data, folder / "out", settings=settings, connector="dci")
    record = done.record
    found = {
        "cut": [record.cut_rows, record.cut_answers],
        "bad": sorted(bad.id for bad in done.bad),
        "dropped": record.dropped,
        "untouched": record.untouched,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


def stop(row: dict[str, Any], stop_at: int) -> None:
    """Ask for a stop after a step, as Ctrl-C does: the first process alone is told of steps."""
    if row["step"] == stop_at - 1:
        os.kill(os.getpid(), signal.SIGINT)


def main() -> int:
    """Fork the processes; the exit code is 0 when all went well."""
    base, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        if len(sys.argv) > 4:
            count_lost(base, folder, Path(sys.argv[4]), rank)
        else:
            work(base, folder, rank, stop_at=STOP)
        sys.stdout.flush()
        os._exit(0)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)


if __name__ == "__main__":
    sys.exit(main())
