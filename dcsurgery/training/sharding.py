"""Several processes that hold a part each: how they split the model, and whole values of it.

Whatever is gathered here is asked for by every process, in the same order. Checkpoints hold whole
tensors, so that any number of processes, split in any way, can go on from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcsurgery.errors import RequestError
from dcsurgery.training.freeze import Trained
from dcsurgery.training.settings import TrainingSettings

# In which the parameters themselves are split, not the optimiser's numbers alone.
PARTITIONED = ("zero3", "fsdp2")
MOMENTS = ("exp_avg", "exp_avg_sq")
_PLAIN = (bool, int, float, str, tuple, type(None))


def sharding() -> str:
    """Return none, zero1, zero2, zero3 or fsdp2: what accelerate's environment asks for.

    Raises RequestError for what would not train the same model.
    """
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        stage = _zero_stage()
        if stage not in (1, 2, 3):
            raise RequestError(
                f"DeepSpeed with ZeRO stage {stage} splits nothing",
                hint="use ZeRO 1, 2 or 3, or leave DeepSpeed out",
            )
        return f"zero{stage}"
    if not _flag("ACCELERATE_USE_FSDP"):
        return "none"
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RequestError(
            "FSDP version 1 is not supported",
            hint="use version 2: accelerate launch --use_fsdp --fsdp_version 2, or FSDP_VERSION=2",
        )
    return "fsdp2"


def check_sharding(settings: TrainingSettings) -> None:
    """Raise RequestError for settings that the split asked for cannot carry out."""
    found = sharding()
    if found == "none":
        return
    if settings.precision == "fp16":
        raise RequestError(
            f"--precision fp16 cannot be used with {found}", hint="use --precision bf16 or fp32"
        )
    if settings.quantize is not None:
        raise RequestError(
            f"weights in {settings.quantize} cannot be split by {found}",
            hint="leave out --quantize, or start the processes without sharding",
        )
    if _flag("ACCELERATE_USE_CPU"):
        raise RequestError(
            f"ACCELERATE_USE_CPU makes accelerate leave {found} out without a word",
            hint="start it without accelerate's --cpu; where there is no GPU, processes use the "
            "CPU anyway",
        )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") not in ("no", ""):
        raise RequestError(
            f"accelerate is to compute in {os.environ['ACCELERATE_MIXED_PRECISION']} by itself",
            hint="use accelerate's --mixed_precision no, and --precision here",
        )


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _zero_stage() -> int | str:
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    try:
        found = json.loads(Path(file).read_bytes())["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RequestError(
            f"{file} does not say zero_optimization.stage", hint="correct DeepSpeed's config"
        ) from None
    return found if isinstance(found, int) else str(found)


def in_parts(parameter: Tensor) -> bool:
    """Return whether a process holds a part of a parameter alone: ZeRO-3 and FSDP2."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "full_tensor")


def size(parameter: Tensor) -> int:
    """Return how many numbers a parameter has, all parts together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def whole(parameter: Tensor) -> Tensor:
    """Return all values of a parameter of which every process may hold a part."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_full_fp32_param

        found: Tensor = safe_get_full_fp32_param(parameter)
        return found
    full = getattr(parameter, "full_tensor", None)
    value: Tensor = parameter if full is None else full()
    return value.detach()


class Shards:
    """What is trained and AdamW's numbers for it, of which every process holds a part."""

    def __init__(self, model: nn.Module, trained: Trained, optimizer: Any) -> None:
        self.trained = trained
        self.optimizer = optimizer
        parameters = dict(model.named_parameters())
        self.parameters = {name: parameters[name] for name in trained.names}
        self.first = torch.distributed.get_rank() == 0

    def values(self) -> dict[str, Tensor]:
        """Return the trained parameters, whole, in the first process; nothing in the others."""
        return self._kept((name, whole(value)) for name, value in self.parameters.items())

    def state(self) -> dict[str, Any]:
        """Return what AdamW.state_dict() of one process would, in the first; {} in the others."""
        self._link()
        moments = {
            key: self._kept((name, self._moment(name, key)) for name in self.parameters)
            for key in MOMENTS
        }
        if not self.first:
            return {}
        step = next(iter(self._flat()[0].values()))["step"]
        places = {name: place for place, name in enumerate(self.parameters)}
        state = {
            place: {"step": torch.as_tensor(float(step))} | {k: moments[k][name] for k in MOMENTS}
            for name, place in places.items()
        }
        groups = [
            {key: value for key, value in group.items() if isinstance(value, _PLAIN)}
            | {"params": [places[name] for name in self.trained.groups[group["name"]]]}
            for group in self.optimizer.param_groups
        ]
        return {"state": state, "param_groups": groups}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what state() gave. Every process gives the same."""
        states, flats = self._flat()
        step = next(iter(state["state"].values()))["step"]
        for flat in flats:
            zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
            states[flat] = {"step": torch.as_tensor(float(step)), **zeros}
        self._link()
        for place, parameter in enumerate(self.parameters.values()):
            for key in MOMENTS:
                self._put(parameter, key, state["state"][place][key])
        saved = {group["name"]: group for group in state["param_groups"]}
        for group in self.optimizer.param_groups:
            group |= {k: v for k, v in saved[group["name"]].items() if k != "params"}

    def reached(self) -> Iterator[tuple[str, bool]]:
        """Give every trained parameter and whether it ever had a gradient other than zero."""
        self._link()
        for name in self.parameters:
            yield name, bool((self._moment(name, "exp_avg_sq") != 0).any())

    def _kept(self, found: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Gather one tensor after another, and keep them in the first process's main memory."""
        return {name: value.cpu().clone() for name, value in found if self.first}

    def _flat(self) -> tuple[dict[Tensor, dict[str, Any]], list[Tensor]]:
        """Return the inner optimiser's state and the tensors it is kept for."""
        zero = self.optimizer
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
            if hasattr(zero, name):
                return zero.optimizer.state, list(getattr(zero, name))
        return zero.state, list(self.parameters.values())

    def _link(self) -> None:
        """Let ZeRO-1 and 2 find the numbers of all groups: they look after the first group's step.

        Of the other groups there are none yet by then, and they do not look again.
        """
        if hasattr(self.optimizer, "_hp_optimizer_states_linked"):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _moment(self, name: str, key: str) -> Tensor:
        parameter = self.parameters[name]
        if hasattr(parameter, "full_tensor"):
            full: Tensor = self.optimizer.state[parameter][key].full_tensor()
            return full
        from deepspeed.utils import safe_get_full_optimizer_state

        found: Tensor = safe_get_full_optimizer_state(parameter, key)
        return found

    def _put(self, parameter: Any, key: str, value: Tensor) -> None:
        if hasattr(parameter, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = parameter.device_mesh, parameter.placements
            value = value.to(parameter.device)
            self.optimizer.state[parameter][key].copy_(distribute_tensor(value, mesh, placements))
        elif hasattr(parameter, "ds_id"):
            from deepspeed.utils import safe_set_local_optimizer_state

            size = parameter.ds_tensor.numel()
            place = torch.distributed.get_rank(parameter.ds_process_group)
            # The last part is filled up.
            flat = nn.functional.pad(value.flatten(), (0, size * (place + 1)))
            safe_set_local_optimizer_state(parameter, flat[size * place :][:size], key)
        else:
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, value, key)
