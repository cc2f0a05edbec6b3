"""Picture files that Pillow cannot write, made byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(
    size: tuple[int, int], depth: int, colour: int, rows: list[bytes], **chunks: bytes
) -> bytes:
    """A PNG of any bit depth and colour type, with further chunks before its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    told = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + told + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(
    size: tuple[int, int], pixels: bytes, tags: dict[int, tuple[int, ...]], *, order: str = "<"
) -> bytes:
    """An uncompressed TIFF of one strip; `tags` are short values beside size and strip."""
    count = 5 + len(tags)
    start = 8 + 2 + 12 * count + 4
    values = {
        256: (size[0],), 257: (size[1],), 259: (1,), 273: (start,), 279: (len(pixels),), **tags,
    }  # fmt: skip
    entries = b""
    for tag, value in sorted(values.items()):
        assert len(value) <= 2
        packed = struct.pack(f"{order}{len(value)}H", *value).ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, 3, len(value)) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, count) + entries + b"\0" * 4
    return head + pixels


def gif(screen: tuple[int, int], at: tuple[int, int], size: tuple[int, int]) -> bytes:
    """A GIF whose one frame covers part of its screen, in the second of its colours."""
    colours = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, 0, 0) + colours
    codes = [4, 1] * (size[0] * size[1]) + [5]  # clear, colour 1, ...; end
    bits = "".join(f"{code:03b}"[::-1] for code in codes)
    data = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    frame = b"\x2c" + struct.pack("<HHHHB", *at, *size, 0) + b"\x02" + bytes([len(data)]) + data
    return head + frame + b"\0;"


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of greys that are light to the power of 1 / gamma (ICC.1:2001-04)."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)  # D50
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = [(b"wtpt", white), (b"kTRC", curve)]
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data
