"""A LoRA adapter in peft's files, read without peft, and merged into the base's matrices.

W' = W + s B A with s = alpha / r (arXiv 2106.09685 eq. 3), alpha / sqrt(r) with rank-stabilised
scaling (arXiv 2312.03732). Sums are fp32 and cast once, row by row, so that memory stays flat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsurgery.checkpoint.checks import parse_object, read_text
from dcsurgery.checkpoint.copying import Transfer, make_folder, transfer_file, write_file
from dcsurgery.checkpoint.digests import digest, file_bytes, tensor_bytes
from dcsurgery.checkpoint.headers import Header, TensorEntry, read_header
from dcsurgery.connectors.folding import ITEM_BYTES, Rows, decode
from dcsurgery.errors import MalformedCheckpointError
from dcsurgery.surgery.plan_file import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    PEFT_MODEL,
    AdapterRecord,
)

if TYPE_CHECKING:
    from dcsurgery.connectors.folding import Array

FACTORS = (".lora_A.weight", ".lora_B.weight")
# What makes an adapter more than W + s B A.
MORE_THAN_LORA = (
    "use_dora",
    "fan_in_fan_out",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
)


@dataclass(frozen=True)
class Adapter:
    """A folder with adapter_config.json and adapter_model.safetensors, opened by header only.

    `modules` are the adapted ones by their path in the model; `obstacle` says why it is not a plain
    sum of matrices, None where it is one.
    """

    folder: Path
    config: dict[str, Any]
    header: Header
    modules: tuple[str, ...]
    obstacle: str | None

    def scale(self, module: str) -> float:
        """Return what B A is multiplied with in a module."""
        rank = self._entry(module, FACTORS[0]).shape[0]
        alpha = self.config.get("lora_alpha", rank)
        patterns: dict[str, Any] = self.config.get("alpha_pattern") or {}
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return float(alpha / (rank**0.5 if self.config.get("use_rslora") else rank))

    def merged(self, module: str, base: Rows) -> Rows:
        """Return the rows of W + s B A for the rows of W."""

        def rows() -> Iterator[Array]:
            import numpy as np

            down = self._read(module, FACTORS[0]) * np.float32(self.scale(module))
            up, start = self._read(module, FACTORS[1]), 0
            for chunk in base():
                yield chunk + up[start : start + len(chunk)] @ down
                start += len(chunk)

        return rows

    def check(self, module: str, shape: Sequence[int]) -> None:
        """Raise MalformedCheckpointError when the factors do not fit a matrix [out, in]."""
        down, up = (self._entry(module, factor) for factor in FACTORS)
        if down.shape[0] != up.shape[1] or (up.shape[0], down.shape[1]) != tuple(shape):
            raise MalformedCheckpointError(
                f"the adapter of {module} is {list(up.shape)} x {list(down.shape)}, its matrix "
                f"{list(shape)}",
                hint="the adapter belongs to another base",
            )

    def _entry(self, module: str, factor: str) -> TensorEntry:
        return self.header.tensors[self._name(module, factor)]

    def _name(self, module: str, factor: str) -> str:
        name = module + factor
        return name if name in self.header.tensors else PEFT_MODEL + name

    def _read(self, module: str, factor: str) -> Array:
        entry = self._entry(module, factor)
        name = self._name(module, factor)
        raw = b"".join(tensor_bytes(self.folder / ADAPTER_WEIGHTS, self.header, name))
        return decode(raw, entry.dtype).reshape(entry.shape).astype("<f4")


def open_adapter(folder: Path) -> Adapter:
    """Open peft's files in a folder. Raises CheckpointError when they are missing or broken."""
    config = parse_object(read_text(folder / ADAPTER_CONFIG), ADAPTER_CONFIG)
    header = read_header(folder / ADAPTER_WEIGHTS)
    modules = {
        name.removeprefix(PEFT_MODEL).removesuffix(factor)
        for name in header.tensors
        for factor in FACTORS
        if name.endswith(factor)
    }
    found = Adapter(folder, config, header, tuple(sorted(modules)), _obstacle(config, header))
    for module in found.modules:
        for factor in FACTORS:
            if found._name(module, factor) not in header.tensors:
                raise MalformedCheckpointError(
                    f"{ADAPTER_WEIGHTS} lacks {module}{factor}", hint="write the adapter again"
                )
    return found


def _obstacle(config: Mapping[str, Any], header: Header) -> str | None:
    if config.get("peft_type") != "LORA":
        return f"it is of type {config.get('peft_type')!r}, not LORA"
    for key in MORE_THAN_LORA:
        if config.get(key):
            return f"it uses {key}"
    for name, entry in header.tensors.items():
        if not name.endswith(FACTORS) or len(entry.shape) != 2 or entry.dtype not in ITEM_BYTES:
            return f"it has {name} ({entry.dtype} {list(entry.shape)})"
    return None


def describe_adapter(adapter: Adapter, targets: Mapping[str, str]) -> AdapterRecord:
    """Return the record of an adapter that is not merged; `targets` are tensors by module."""
    return AdapterRecord(
        files={
            name: digest(file_bytes(adapter.folder / name))
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        },
        targets=dict(targets),
    )


def copy_adapter(adapter: Adapter, folder: Path, *, beside: bool) -> list[Transfer]:
    """Copy an adapter into an output; `beside` a stock form it says how it is loaded."""
    target = folder / ADAPTER_FOLDER
    make_folder(target)
    names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    moved = [transfer_file(adapter.folder / name, target / name) for name in names]
    done = [Transfer(f"{ADAPTER_FOLDER}/{m.file}", m.mode, m.written) for m in moved]
    if beside:
        written = write_file(target / "README.md", [BESIDE.encode()])
        done.append(Transfer(f"{ADAPTER_FOLDER}/README.md", "write", written))
    return done


BESIDE = f"""# LoRA adapter, kept beside the weights

The model two folders up does not contain it. Load both, with transformers and peft installed:

```python
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("OUT", dtype="auto")
model.load_adapter("OUT/{ADAPTER_FOLDER}")
```
"""


def merge_problem(adapter: Adapter, targets: Mapping[str, str]) -> str | None:
    """Return why an adapter cannot be merged into the base's matrices; None when it can."""
    if adapter.obstacle is not None:
        return adapter.obstacle
    missing = [module for module in adapter.modules if module not in targets]
    return f"{missing[0]} is not one matrix of the base" if missing else None
