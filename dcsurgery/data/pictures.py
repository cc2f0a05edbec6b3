"""A row's pictures: where they are, and opening them without a traceback."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsurgery.data.open_images import BROKEN
from dcsurgery.errors import RequestError

# A whole JPEG or PNG ends with these; some cameras write a little after it.
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
TAIL = 64


class RowError(RequestError):
    """One row of the data cannot be used; the message is the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="repair or remove the row, or raise --max-bad")


@dataclass(frozen=True)
class ImageSource:
    """A picture that is not opened yet: a path, the bytes of a file, or a PIL image.

    `name` is what people see; `key` tells two pictures apart.
    """

    name: str
    path: Path | None = None
    data: bytes | None = None
    picture: Any = None

    @property
    def key(self) -> str:
        """The path, or a digest of the content."""
        if self.path is not None:
            return os.path.normpath(self.path)
        raw = self.data if self.data is not None else self.picture.tobytes()
        return hashlib.sha256(raw).hexdigest()

    def open(self) -> Any:
        """Return an RGB PIL image. Raises RowError for a picture that is missing or broken."""
        from PIL import Image

        with _reading(self.name):
            if self.picture is not None:
                return self.picture.convert("RGB")
            with Image.open(self._source()) as image:
                return image.convert("RGB")

    def check(self) -> None:
        """Look at the head and the tail of the file; decode it only where the tail is odd.

        Raises RowError for a picture that is missing, empty, no picture, or visibly cut off.
        """
        from PIL import Image

        if self.picture is not None:
            return
        with _reading(self.name):
            with Image.open(self._source()) as image:
                kind = image.format or ""
            whole = kind not in ENDS or ENDS[kind] in self._tail()
        if not whole:
            self.open()

    def _source(self) -> Any:
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None
        if not self.path.is_file():
            raise RowError(f"image {self.name} does not exist")
        return self.path

    def _tail(self) -> bytes:
        if self.data is not None:
            return self.data[-TAIL:]
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - TAIL))
            return file.read()


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises over a file into a RowError."""
    from PIL import Image

    try:
        yield
    except (OSError, Image.DecompressionBombError, *BROKEN) as error:
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise RowError(f"image {name} cannot be read: {why}") from None


def image_source(value: Any, root: Path | None, *, trusted: bool = False) -> ImageSource:
    """Return the picture a row names: a path below `root`, {"bytes", "path"}, bytes or PIL image.

    `trusted` paths may be absolute (a data set's own files). Raises RowError for a path that leaves
    `root`, a URL, or a value that names no picture.
    """
    if isinstance(value, str):
        return _from_path(value, root, trusted)
    if isinstance(value, bytes):
        return ImageSource("in the row", data=value)
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path") or value.get("url")
        if isinstance(data, bytes):
            return ImageSource(str(path or "in the row"), data=data)
        if isinstance(path, str):
            return _from_path(path, root, trusted)
    elif hasattr(value, "convert") and hasattr(value, "tobytes"):
        return ImageSource("in the row", picture=value)
    raise RowError(f"an image is neither a path nor a picture but {type(value).__name__}")


def _from_path(name: str, root: Path | None, trusted: bool) -> ImageSource:
    shown = name if len(name) <= 120 else f"{name[:117]}..."
    if name.startswith(("http://", "https://", "hf://", "data:")):
        raise RowError(f"image {shown} is a URL: download it first")
    if not name.strip() or "\0" in name:
        raise RowError(f"image path {name!r} is empty or no path")
    if trusted and os.path.isabs(name):
        return ImageSource(shown, path=Path(name))
    base = os.path.abspath(root or ".")
    # As written: links inside the folder are its owner's, and people do link data sets together.
    full = os.path.normpath(os.path.join(base, name))
    if os.path.commonpath([base, full]) != base:
        raise RowError(f"image path {shown} leaves the images folder")
    return ImageSource(shown, path=Path(full))
