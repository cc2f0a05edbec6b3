"""Tensors inside torch's zip files, found without running or loading anything in them.

torch.save (since 1.6) writes a zip archive whose members are stored uncompressed: `data.pkl`
describes the tensors, `data/KEY` holds the bytes of a storage. Only the description is read here,
by an unpickler that knows a dozen harmless names and refuses every other, so that a pickled tensor
is a range of a file like any other. Older files are not archives and are refused.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.headers import DTYPE_BITS, Header, TensorEntry
from dcsurgery.errors import MalformedCheckpointError, UnsafeFormatError

# read(start, length) of one file.
Read = Callable[[int, int], bytes]

MAX_PICKLE = 64 * 1024 * 1024
LOCAL_HEADER = 30
TAIL = 256 * 1024
CONNECTIONS = 8
_BROKEN = (
    pickle.UnpicklingError, struct.error, ArithmeticError, AttributeError, EOFError, LookupError,
    MemoryError, NotImplementedError, RecursionError, TypeError, ValueError,
)  # fmt: skip

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
# What torch's own writer needs for a table of tensors. Extension codes, the only other way to a
# global, are not among them.
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT",
    "GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND",
    "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE",
    "BUILD", "BINPERSID",
}  # fmt: skip


@dataclass(frozen=True)
class _Storage:
    dtype: str | None
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dtype(str):
    """The name of a dtype, standing in for torch's object; nothing can be called on it."""


class _Table(dict[Any, Any]):
    """A dictionary that ignores what a pickle would set on it."""

    def __setstate__(self, state: Any) -> None:
        """Drop the state: torch keeps module versions there."""


def _rebuild(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, str(storage.dtype), offset, tuple(shape), tuple(strides))


def _rebuild_typed(
    storage: _Storage, offset: int, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: str,
    *_: Any,
) -> _Tensor:  # fmt: skip
    return _Tensor(storage, str(dtype), offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Table,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch.storage", "UntypedStorage"): _Dtype(""),
    **{("torch", name): _Dtype(dtype) for name, dtype in (_STORAGES | _DTYPES).items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.where = where

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name))
        if found is None:
            raise UnsafeFormatError(
                f"{self.where} wants to call {module[:60]}.{name[:60]} when it is read, "
                "which a file of tensors has no need for",
                hint="do not load this file with other tools either, unless you know who made it",
            )
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("a persistent id is not a storage")
        return _Storage(str(dtype) or None, str(key))


def _check_opcodes(data: bytes, where: str) -> None:
    """Refuse what no table of tensors needs, and memo slots that would fill the memory."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise UnsafeFormatError(
                f"{where} holds more than a table of tensors: its pickle makes objects of other "
                f"kinds ({opcode.name})",
                hint="save the model's state_dict() alone, as safetensors",
            )
        slot = int(argument or 0) if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") else 0
        if not 0 <= slot < len(data):
            raise pickle.UnpicklingError("a memo slot is out of range")


class _RangeFile(io.RawIOBase):
    """What zipfile needs to find its directory: a seekable file over `read`, the tail kept."""

    def __init__(self, read: Read, size: int) -> None:
        self.fetch, self.size, self.at = read, size, 0
        self.start = max(0, size - TAIL)
        self.tail = read(self.start, size - self.start)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, count: int = -1) -> bytes:
        stop = self.size if count < 0 else min(self.size, self.at + count)
        start, self.at = self.at, max(stop, self.at)
        if start >= stop:
            return b""
        if start >= self.start:
            return self.tail[start - self.start : stop - self.start]
        return self.fetch(start, stop - start)


@contextmanager
def open_reader(path: Path) -> Iterator[Read]:
    """Yield read(start, length) of a local file. Raises MalformedCheckpointError."""
    try:
        with path.open("rb") as file:
            yield lambda start, length: os.pread(file.fileno(), length, start)
    except OSError as error:
        raise MalformedCheckpointError(
            f"{path} cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from None


def _malformed(where: str, problem: str) -> MalformedCheckpointError:
    return MalformedCheckpointError(
        f"{where} is not a file of tensors that torch wrote: {problem}",
        hint="download or copy the file again; if it stays broken, re-save the model",
    )


def read_pickle(read: Read, size: int, where: str) -> Header:
    """Return the tensors of a torch zip file, `begin` and `end` counted from the file's start.

    Tied tensors may share their bytes. Raises UnsafeFormatError for a file that names anything but
    tensors and for one older than torch 1.6, MalformedCheckpointError for a broken one.
    """
    if size < LOCAL_HEADER or read(0, 4) != b"PK\x03\x04":
        raise UnsafeFormatError(
            f"{where} is a pickle of a kind that cannot be read without running it "
            "(no zip archive: torch older than 1.6, or no torch file at all)",
            hint="load it with torch.load(..., weights_only=True) and save it as safetensors",
        )
    try:
        with zipfile.ZipFile(_RangeFile(read, size)) as archive:
            root, tensors = _read_table(archive, where)
            members = {info.filename: info for info in archive.infolist()}
        keys = sorted({tensor.storage.key for tensor in tensors.values()})
        infos = [members[f"{root}data/{key}"] for key in keys]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            starts = list(pool.map(lambda info: _data_start(read, info, size), infos))
        places = dict(zip(keys, zip(starts, infos, strict=True), strict=True))
        entries = [
            _entry(name, tensor, start, info.file_size)
            for name, tensor in tensors.items()
            for start, info in [places[tensor.storage.key]]
        ]
    except zipfile.BadZipFile as error:
        raise _malformed(where, str(error)[:80]) from None
    except _BROKEN as error:
        raise _malformed(where, str(error)[:120] or type(error).__name__) from None
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    return Header({entry.name: entry for entry in entries}, {"format": "pt"}, 0)


def _read_table(archive: zipfile.ZipFile, where: str) -> tuple[str, dict[str, _Tensor]]:
    """Return the archive's root ("archive/") and its tensors by name."""
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1:
        raise ValueError(f"{len(names)} descriptions of tensors (data.pkl)")
    root = names[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    if archive.getinfo(names[0]).file_size > MAX_PICKLE:
        raise ValueError("its description is far larger than one of tensors needs to be")
    data = archive.read(names[0])
    _check_opcodes(data, where)
    table = _Unpickler(data, where).load()
    if not isinstance(table, dict):
        raise ValueError("it holds no table of tensors")
    # Not table.items(): the pickle may have put another thing under that name.
    found = {name: value for name, value in dict.items(table) if isinstance(value, _Tensor)}
    if not found or not all(isinstance(name, str) for name in found):
        raise ValueError("it holds no table of named tensors")
    return root, found


def _data_start(read: Read, info: zipfile.ZipInfo, size: int) -> int:
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"{info.filename} is compressed or encrypted")
    header = read(info.header_offset, LOCAL_HEADER)
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"{info.filename} does not begin where the directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    start: int = info.header_offset + LOCAL_HEADER + name + extra
    if start + info.file_size > size:
        raise ValueError(f"{info.filename} ends behind the file")
    return start


def _entry(name: str, tensor: _Tensor, start: int, held: int) -> TensorEntry:
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if tensor.dtype not in DTYPE_BITS or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"{name[:80]!r} has an impossible dtype, shape or offset")
    if tensor.strides != _contiguous(tensor.shape, tensor.strides):
        raise ValueError(f"{name[:80]!r} is not stored row by row (strides {tensor.strides})")
    width = DTYPE_BITS[tensor.dtype] // 8
    begin, length = tensor.offset * width, math.prod(tensor.shape) * width
    if begin + length > held:
        raise ValueError(f"{name[:80]!r} needs more bytes than its storage has")
    return TensorEntry(name, tensor.dtype, tensor.shape, start + begin, start + begin + length)


def _contiguous(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Return row-major strides; where a dimension has one step at most, any stride is right."""
    wanted: list[int] = []
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        wanted.append(stride if size <= 1 or 0 in shape else step)
        step *= max(size, 1)
    return tuple(reversed(wanted))
