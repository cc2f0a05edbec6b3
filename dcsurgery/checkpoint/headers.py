"""The safetensors header: parsed and written without torch, at least as strictly as safetensors.

A file is a little-endian u64 N, N bytes of JSON and the data. Tensors cover the data without holes.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsurgery.errors import MalformedCheckpointError

MAX_HEADER = 100_000_000
PAGE = 4096
_MAX_SIZE = 2**63

DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `begin` and `end` count from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A file's tensors in offset order, its metadata, and where the data starts (8 + N)."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str] | None
    data_start: int

    @property
    def data_size(self) -> int:
        """Bytes of all tensors."""
        return max((entry.end for entry in self.tensors.values()), default=0)

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.data_start + self.data_size


class _Broken(Exception):
    """A rule of the format is broken; the message says which."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _Broken(message)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        _require(key not in result, f"the key {_label(key)} appears twice")
        result[key] = value
    return result


def _label(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _parse_int(text: str) -> int:
    # Python reads -0 as the integer 0, safetensors refuses it; no u64 has more than 20 digits.
    sound = not text.startswith("-") and len(text) <= 20
    _require(sound, f"{_label(text)} is not a size or offset")
    return int(text)


def _refuse_constant(name: str) -> Any:
    raise _Broken(f"{name} is not JSON")


def _malformed(where: str, problem: str) -> MalformedCheckpointError:
    return MalformedCheckpointError(
        f"{where} is not a valid safetensors file: {problem}",
        hint="download or copy the file again; if it stays broken, re-save the model",
    )


def header_length(first: bytes, file_size: int, where: str) -> int:
    """Return N from a file's first 8 bytes, or raise MalformedCheckpointError for a lie."""
    if len(first) < 8 or file_size < 8:
        raise _malformed(where, f"{file_size} bytes are too few for a header")
    if first[:8] == b"version ":
        raise MalformedCheckpointError(
            f"{where} is a pointer of Git LFS: the file itself was not fetched",
            hint="run `git lfs pull` in the model's folder, or fetch it with `hf download`",
        )
    length: int = struct.unpack("<Q", first[:8])[0]
    if length > min(MAX_HEADER, file_size - 8):
        raise _malformed(
            where,
            f"the header claims {length} bytes, the file has {file_size} and 100 MB is the limit",
        )
    return length


def parse_header(blob: bytes, file_size: int, where: str) -> Header:
    """Parse the first 8 + N bytes of a file of `file_size` bytes; `where` names it in errors.

    Raises MalformedCheckpointError for anything safetensors refuses, and for duplicate names.
    """
    length = header_length(blob, file_size, where)
    try:
        _require(len(blob) >= 8 + length, "the header is cut off")
        text = blob[8 : 8 + length].decode("utf-8")
        _require(text.startswith("{"), "the header does not begin with {")
        table = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
        )
        _require(isinstance(table, dict), "the header is not an object")
        metadata = _read_metadata(table.pop("__metadata__", None))
        entries = [_read_entry(name, value) for name, value in table.items()]
        entries.sort(key=lambda entry: (entry.begin, entry.end))
        _check_cover(entries, file_size - 8 - length)
    except UnicodeDecodeError:
        raise _malformed(where, "the header is not UTF-8") from None
    except RecursionError:
        raise _malformed(where, "the header is nested too deeply") from None
    except ValueError as error:
        raise _malformed(where, f"the header is not JSON ({str(error)[:80]})") from None
    except _Broken as error:
        raise _malformed(where, str(error)) from None
    return Header({entry.name: entry for entry in entries}, metadata, 8 + length)


def _read_metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    valid = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    _require(valid, "__metadata__ does not map text to text")
    _require(not _has_surrogate(value), "__metadata__ holds text that is not Unicode")
    return dict(value)


def _has_surrogate(mapping: Mapping[str, str]) -> bool:
    return any(
        "\ud800" <= char <= "\udfff" for pair in mapping.items() for part in pair for char in part
    )


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _read_entry(name: str, value: Any) -> TensorEntry:
    label = _label(name)
    _require(not _has_surrogate({name: ""}), "a tensor name is not Unicode")
    fields = {"dtype", "shape", "data_offsets"}
    _require(
        isinstance(value, dict) and set(value) == fields,
        f"{label} does not have exactly dtype, shape, data_offsets",
    )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    _require(
        isinstance(dtype, str) and dtype in DTYPE_BITS,
        f"{label} has an unknown dtype {_label(dtype)}",
    )
    _require(
        isinstance(shape, list) and all(map(_natural, shape)), f"{label} has an impossible shape"
    )
    valid = isinstance(offsets, list) and len(offsets) == 2 and all(map(_natural, offsets))
    _require(valid, f"{label} has impossible offsets")
    bits = DTYPE_BITS[dtype]
    # Rust multiplies left to right and refuses overflow even when a later 0 would cancel it.
    count = 1
    for dim in shape:
        count *= dim
        _require(count < _MAX_SIZE, f"{label} has an impossible shape")
    _require(count * bits < _MAX_SIZE, f"{label} has an impossible shape")
    begin, end = offsets
    _require(
        count * bits == 8 * (end - begin),
        f"{label} has shape {_label(shape)} of {dtype} but offsets {begin}..{end}",
    )
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _check_cover(entries: Sequence[TensorEntry], data_size: int) -> None:
    at = 0
    for entry in entries:
        _require(
            entry.begin == at, f"tensor {_label(entry.name)} overlaps another or leaves a hole"
        )
        at = entry.end
    _require(at == data_size, f"the tensors need {at} bytes of data, the file has {data_size}")


def read_header(path: Path) -> Header:
    """Read and check the header of a local file. Raises MalformedCheckpointError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise _malformed(path.name, "it is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = header_length(first, size, path.name)
            return parse_header(first + file.read(length), size, path.name)
    except OSError as error:
        raise MalformedCheckpointError(
            f"{path} cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from None


def render_header(
    entries: Sequence[TensorEntry],
    metadata: Mapping[str, str] | None,
    congruent_to: int | None = None,
) -> bytes:
    """Return the 8 length bytes and the JSON of a header, padded with spaces.

    The result's length is a multiple of 8, or congruent to `congruent_to` modulo 4096, so that the
    data that follows can share disk blocks with a source whose data starts at `congruent_to`.
    """
    table: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    for entry in entries:
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    if congruent_to is None:
        padding = -len(text) % 8
    else:
        padding = (congruent_to - 8 - len(text)) % PAGE
    return struct.pack("<Q", len(text) + padding) + text + b" " * padding


def lay_out(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> list[TensorEntry]:
    """Return entries for (name, dtype, shape) placed one after another from offset 0."""
    entries: list[TensorEntry] = []
    at = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * DTYPE_BITS[dtype] // 8
        entries.append(TensorEntry(name, dtype, shape, at, at + size))
        at += size
    return entries
