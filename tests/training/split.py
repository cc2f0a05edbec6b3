"""Train with processes that share a model, started as torchrun does; imports are paid once.

python -m tests.training.split WORK.json

WORK is a list of trainings, each {"base", "data", "out", "processes", "sharding", "connector",
"settings"} and perhaps "resume", and "kill" or "stop": the step after which one process is killed,
or gets Ctrl-C. They run one after another; the exit codes of each are printed, a JSON list.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from dcsurgery.connectors.request import Connector
from dcsurgery.training.finetune import finetune_connector
from dcsurgery.training.settings import TrainingSettings

ENGINES: dict[str, dict[str, str]] = {
    "none": {},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    },
}


def all_in_parts(folder: str) -> dict[str, str]:
    """Return DeepSpeed's own config: small parameters, which it would keep whole, are split too."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    config = {"zero_optimization": zero, **batch, "gradient_clipping": "auto"}
    file = Path(folder) / f"zero3-{os.getpid()}.json"  # every rank writes its own
    file.write_text(json.dumps(config))
    return {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


def fsdp_without_gpu() -> None:
    """Let accelerate shard on the CPU: it can, but turns it off where there is no GPU."""
    from accelerate.state import AcceleratorState, DistributedType

    before = AcceleratorState.__init__

    def begin(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        before(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = begin


def asked(connector: dict[str, Any]) -> Connector:
    """Return a connector from its fields, its kind named `connector`."""
    return Connector.of(**connector)


def train(work: dict[str, Any], rank: int) -> None:
    """Carry out one training in this process, one of several."""

    def progress(step: int, steps: int, words: str) -> None:
        for key, number in (("kill", signal.SIGKILL), ("stop", signal.SIGINT)):
            if step == work.get(key):
                os.kill(os.getpid(), number)

    finetune_connector(
        work["base"],
        work["data"],
        work["out"],
        settings=TrainingSettings(**work["settings"]),
        connector=asked(work["connector"]),
        resume=work.get("resume", False),
        progress=progress,
    )


def start(work: dict[str, Any], folder: str) -> list[int]:
    """Fork the processes of a training; return their exit codes."""
    count, pids = work["processes"], []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(count):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        os.environ |= ENGINES[work["sharding"]]
        if work["sharding"] == "zero3":
            os.environ |= all_in_parts(folder)
        if work["sharding"] == "fsdp2":
            fsdp_without_gpu()
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        code = 1
        try:
            train(work, rank)
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return waited(pids)


def waited(pids: list[int]) -> list[int]:
    """Wait as a launcher does: when one process dies, the others are ended."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid] not in (0, 130):
            for other in set(pids) - set(codes):
                # Not SIGKILL, by which the one that was to be killed is known.
                os.kill(other, signal.SIGUSR1)
    return [codes[pid] for pid in pids]


def main() -> None:
    """Run all trainings, whatever comes of each."""
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        codes = [start(work, folder) for work in json.loads(Path(sys.argv[1]).read_bytes())]
    sys.__stdout__.write(json.dumps(codes) + "\n")


if __name__ == "__main__":
    main()
