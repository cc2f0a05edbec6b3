"""A folder as the Xet store: hf_xet itself writes there when the server's address is local://.

The format of its shards is nobody's promise: tests on it say what they found and stop there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENTRY = 48
VERIFIED, HAS_METADATA = 1 << 31, 1 << 30


@dataclass(frozen=True)
class XetStore:
    """Chunks and file manifests below a folder."""

    folder: Path

    @property
    def url(self) -> str:
        """The address that makes hf_xet use the folder."""
        return f"local://{self.folder}"

    def stored(self) -> int:
        """Bytes of all chunks."""
        chunks = self.folder / "xet/xorbs/xorbs"
        return sum(path.stat().st_size for path in chunks.rglob("*") if path.is_file())

    def files(self) -> dict[str, tuple[str, int]]:
        """Every file the store can put together: SHA-256 -> (Xet hash, bytes)."""
        found = {}
        for shard in (self.folder / "xet/xorbs/shards").glob("*.mdb"):
            found |= dict(_read_shard(shard.read_bytes()))
        return found


def _name(raw: bytes) -> str:
    """32 bytes as four little-endian words in hex."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def _read_shard(data: bytes) -> Iterator[tuple[str, tuple[str, int]]]:
    at = ENTRY
    while data[at : at + 32] != b"\xff" * 32:
        name = _name(data[at : at + 32])
        flags, count = struct.unpack_from("<II", data, at + 32)
        at += ENTRY
        size = sum(struct.unpack_from("<I", data, at + n * ENTRY + 36)[0] for n in range(count))
        at += count * ENTRY * (2 if flags & VERIFIED else 1)
        if flags & HAS_METADATA:
            yield _name(data[at : at + 32]), (name, size)
            at += ENTRY
