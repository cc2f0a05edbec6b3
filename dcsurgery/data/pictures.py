"""Pictures that rows and commands name: where they are, and opening them without a traceback."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args
from urllib.parse import unquote

from dcsurgery.errors import RequestError

# exif turns pictures as their EXIF tag says, as viewers do; raw leaves them as they are stored, as
# LLaVA's own code does.
Orientation = Literal["exif", "raw"]
# A whole file ends with these; some cameras write a little after it.
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x00;"}
TAIL = 64
HEAD = 1024
# What people take for pictures and Pillow does not open, by how it begins.
STRANGERS = (
    (rb"$", "empty"),
    (rb"\0+$", "nothing but zeros: a copy that failed"),
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "HEIC: convert it to JPEG"),
    (rb".{4}ftypavi", "AVIF that is broken, or needs Pillow 11.3 or newer: convert it to PNG"),
    (rb".{4}ftypcrx", "a camera's raw file: export it as JPEG"),
    (rb".{4}ftyp", "a video: ask about it with --video, or save frames of it as JPEG"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL: convert it to PNG"),
    (rb"[\s\xef\xbb\xbf]*<(svg|(\?xml|!--|!doctype svg).*<svg)", "SVG: export it as PNG"),
    (rb"[\s\xef\xbb\xbf]*<(!doctype html|html|head|\?xml)", "a web page: the download failed"),
    (rb"%PDF", "a PDF: save its page as PNG"),
    (rb".{128}DICM", "DICOM: export the window you mean as PNG"),
    (rb"\x93NUMPY", "a NumPy array: save it as PNG"),
    (rb"v/1\x01|#\?R", "a picture of light, not of levels: tone-map it and save it as PNG"),
    (rb"version https://git-lfs", "a Git LFS pointer: run git lfs pull"),
    (rb"PK\x03\x04|\x1f\x8b", "an archive: unpack it"),
    (rb"gimp xcf|\x1aE\xdf\xa3|P7\n", "of a kind that Pillow does not read: convert it to PNG"),
    (rb"II\*\0|MM\0\*", "a TIFF that is broken, or of a kind that Pillow does not read"),
)  # fmt: skip


class RowError(RequestError):
    """One row of the data cannot be used; the message is the reason.

    `option` is the option of the command line that may help, with its value where one is known.
    """

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message, hint="repair or remove the row, or raise --max-bad")
        self.option = option


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

    def open(self, orientation: Orientation = "exif") -> Any:
        """Return what a person sees as a new RGB PIL image: see dcsurgery.pixels.as_seen.

        Raises RowError for a picture that is missing, broken, or has no evident look.
        """
        from dcsurgery.pixels import as_seen

        with self._opened() as image:
            return as_seen(image, upright=orientation == "exif")

    def check(self) -> None:
        """Look at the head and the tail of the file; decode it only where they do not tell enough.

        Raises RowError for a picture that is missing, visibly cut off, or that `open` would refuse.
        """
        from dcsurgery.pixels import needs_decoding

        with self._opened() as image:
            doubtful = needs_decoding(image)
            kind = image.format or ""
        if not doubtful and self.picture is None and kind in ENDS:
            doubtful = ENDS[kind] not in self._ends(tail=True)
        if doubtful:
            self.open()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Yield a PIL image, and turn whatever Pillow raises over it into a RowError."""
        from PIL import Image, UnidentifiedImageError

        from dcsurgery.pixels import BROKEN

        try:
            if self.picture is not None:
                yield self.picture
                return
            with self._file() as file, Image.open(file) as image:
                yield image
        except UnidentifiedImageError:
            raise RowError(f"image {self.name} is {_named(self._ends())}") from None
        except (OSError, Image.DecompressionBombError, *BROKEN) as error:
            why = " ".join(str(error).split())[:160] or type(error).__name__
            raise RowError(f"image {self.name} cannot be read: {why}") from None

    def _file(self) -> IO[bytes]:
        if self.path is None:
            return io.BytesIO(self.data or b"")
        if not self.path.is_file():
            raise RowError(f"image {self.name} does not exist", "--images")
        return self.path.open("rb")

    def _ends(self, *, tail: bool = False) -> bytes:
        """Return the first or the last bytes of a file."""
        with self._file() as file:
            if tail:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read(TAIL if tail else HEAD)


def _named(head: bytes) -> str:
    """Return what a file is that Pillow does not know."""
    for pattern, words in STRANGERS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return words
    return "not a picture that can be read"


def read_orientation(value: str) -> Orientation:
    """Return the value of --orientation. Raises RequestError for an unknown one."""
    if value not in get_args(Orientation):
        raise RequestError(f"--orientation {value} is unknown", hint="choose exif or raw")
    return cast(Orientation, value)


def image_source(value: Any, root: Path | None, *, trusted: bool = False) -> ImageSource:
    """Return the picture a row names: a path below `root`, {"bytes", "path"}, bytes or PIL image.

    A string may also be a data: URL. `trusted` paths may be absolute (a data set's own files).
    Raises RowError for a path that leaves `root`, another URL, or a value that names no picture.
    """
    if isinstance(value, str):
        return _from_text(value, root, trusted)
    if isinstance(value, bytes):
        return ImageSource("in the row", data=value)
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path") or value.get("url")
        if isinstance(data, bytes):
            return ImageSource(str(path or "in the row"), data=data)
        if isinstance(path, str):
            return _from_text(path, root, trusted)
    elif hasattr(value, "convert") and hasattr(value, "tobytes"):
        return ImageSource("in the row", picture=value)
    raise RowError(f"an image is neither a path nor a picture but {type(value).__name__}")


def from_base64(text: str, shown: str) -> ImageSource:
    """Return the picture that base64 holds, percent-encoded or not. Raises RowError."""
    try:
        data = base64.b64decode("".join(unquote(text).split()), validate=True)
    except ValueError:
        data = b""
    if not data:
        raise RowError(f"image {shown[:40]} is no base64")
    return ImageSource("in the row", data=data)


def printable(text: str) -> str:
    """Return a text with a question mark for everything that cannot be encoded."""
    return text.encode("utf-8", "replace").decode()


def _from_text(name: str, root: Path | None, trusted: bool) -> ImageSource:
    shown = printable(name if len(name) <= 120 else f"{name[:117]}...")
    if name[:5].lower() == "data:":
        kind, _, text = name.partition(",")
        return from_base64(text if kind.lower().endswith(";base64") else "", shown)
    if re.match("(?:https?|hf|s3|gs)://", name, re.IGNORECASE):
        raise RowError(f"image {shown} is a URL: download it first")
    if not name.strip() or "\0" in name:
        raise RowError(f"image path {name!r} is empty or no path")
    if trusted and os.path.isabs(name):
        return ImageSource(shown, path=Path(name))
    base = os.path.abspath(root or ".")
    # As written: links inside the folder are its owner's, and people do link data sets together.
    full = os.path.normpath(os.path.join(base, name))
    if os.path.commonpath([base, full]) != base:
        raise RowError(f"image path {shown} leaves the images folder", "--images")
    # Plain names are not looked for: a data set has millions.
    if (not name.isascii() or re.search(r"[\\%]|^\s|\s$", name)) and not os.path.isfile(full):
        for spelling in _spellings(name):
            other = os.path.normpath(os.path.join(base, spelling))
            if os.path.commonpath([base, other]) == base and os.path.isfile(other):
                return ImageSource(shown, path=Path(other))
    return ImageSource(shown, path=Path(full))


def _spellings(name: str) -> Iterator[str]:
    """Yield a path as another system would write it: Windows, a URL, macOS, a table."""
    for path in (name, name.strip().replace("\\", "/"), unquote(name)):
        yield path
        yield from (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))


def sample_photo() -> Path:
    """Return the path of a real photograph that matplotlib installs (public domain, 512 x 600)."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def open_images(paths: Sequence[Path], orientation: str = "exif") -> list[Any]:
    """Return what a person sees in picture files, RGB; the sample photograph without a path.

    Raises RequestError where `ImageSource.open` raises RowError, or for an unknown orientation.
    """
    turned = read_orientation(orientation)
    sources = [ImageSource(str(path), path=path) for path in paths or [sample_photo()]]
    try:
        return [source.open(turned) for source in sources]
    except RowError as error:
        raise RequestError(error.message, hint="name PNG or JPEG files") from None
