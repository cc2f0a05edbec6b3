"""Which of a row's keys hold its pictures, and which look as if they did."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dcsurgery.data.fields import Fields, as_list, fold, missing
from dcsurgery.data.pictures import ImageSource, RowError, from_base64, image_source

# In the order of preference. Bytes beat paths: paths are often left over from another machine.
PICTURES = (
    "image", "images", "decoded_image", "image_path", "image_paths", "img", "imgs", "img_path",
    "image_file", "image_filename", "image_name", "imgname", "img_name", "imagename", "picture",
    "pictures", "photo", "photos", "file_name", "file_names", "filename", "figure", "figure_path",
    "filepath", "file_path", "image_base64_str", "image_base64", "image_bytes", "img_bytes",
    "pil_image", "jpg", "jpeg", "png", "webp", "image_url", "image_urls", "img_url", "path", "file",
    "url",
)  # fmt: skip
# They name other things too: only a value that looks like a picture is one.
GENERAL = ("file_name", "file_names", "filename", "filepath", "file_path", "path", "file", "url")
NUMBERED = re.compile(r"(?:images?|imgs?|pictures?|photos?|jpg)_?(\d{1,2})")
# Names of files without folder and suffix; the second kind only where such a file is there.
FILE_IDS, MAYBE_FILE_IDS = ("image_id", "imageid", "img_id"), ("data_id",)
IDS = (
    "id", "question_id", "questionid", "qid", "pid", "uid", "index", "question_index", "sample_id",
    "data_id", "annotation_id",
)  # fmt: skip
SUFFIXES = "jpe?g|jfif|png|webp|bmp|gif|tiff?|ppm|pgm|heic|heif|avif|jp2"
PICTURE_PATH = re.compile(rf"[^\n]{{1,1000}}\.(?:{SUFFIXES})(?:[?#]\S*)?", re.IGNORECASE)
# A list of such paths, written as text.
PICTURE_PATHS = re.compile(rf"""\[.*['"][^'"\n]+\.(?:{SUFFIXES})['"].*\]""", re.I | re.DOTALL)
# How the base64 of JPEG, PNG, GIF, WebP, BMP and TIFF files begins.
BASE64 = re.compile(
    r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-3]|SUkq|TU0A)[A-Za-z0-9+/\s]{40,}={0,2}"
)
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
COCO = re.compile(r"COCO_[a-z]+\d{4}_(\d+)")
DEPTH = 4


@dataclass(frozen=True)
class Key:
    """Stands for the picture that a row has under a key."""

    name: str


@dataclass(frozen=True)
class Found:
    """A row's pictures in order, and the places of those that a text may mention by name.

    `numbered` pictures have a Key each: only what a text mentions is shown, where it mentions any.
    """

    values: list[Any]
    places: dict[str, int] = field(default_factory=dict)
    numbered: bool = False


def find_pictures(fields: Fields, root: Path | None) -> Found:
    """Return the pictures of a row, as it holds them; keys with embedded ones come first.

    Raises RowError for a name of a file that is not there, or that fits several.
    """
    given = [key for key in PICTURES if key in fields.given]
    keys = given or [
        key
        for key in PICTURES
        if fields.has((key,)) and (key not in GENERAL or any(picture_names(key, fields.peek(key))))
    ]
    keys = [key for key in keys if fields.has((key,))]
    if keys:
        best = next((key for key in keys if _embedded(fields.peek(key))), keys[0])
        return _listed(fields.get(best))
    if given:
        return Found([])
    matches = ((NUMBERED.fullmatch(key), key) for key, _ in fields.items())
    numbers = {int(match[1]): key for match, key in matches if match}
    if numbers:
        places = {str(number): place for place, number in enumerate(sorted(numbers))}
        return Found([Key(numbers[number]) for number in sorted(numbers)], places, True)
    return _by_id(fields, root)


def _listed(value: Any) -> Found:
    """One picture, several, or an object of mentions in the text with what they stand for."""
    if isinstance(value, Mapping) and all(re.fullmatch("<.+>", str(key)) for key in value):
        return Found(list(value.values()), {str(key): at for at, key in enumerate(value)})
    return Found([item for item in as_list(value) if not missing(item)])


def _by_id(fields: Fields, root: Path | None) -> Found:
    for key in (*FILE_IDS, *MAYBE_FILE_IDS):
        if fields.has([key]) and (root is not None or key in FILE_IDS):
            name = _file_of(str(fields.peek(key)), key, root)
            return Found([] if name is None or fields.get(key) is None else [name])
    return Found([])


def _embedded(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_embedded, value))
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes)
    if isinstance(value, str):
        return value.startswith("data:") or BASE64.fullmatch(value) is not None
    return isinstance(value, bytes) or hasattr(value, "convert")


def picture_source(value: Any, root: Path | None, *, trusted: bool) -> ImageSource:
    """Return the picture that a value names: what image_source takes, a data URI, base64, file://.

    Raises RowError.
    """
    if isinstance(value, Mapping) and not isinstance(value.get("bytes"), bytes):
        keys = (key for key in ("bytes", "path", "url", "base64", "data") if value.get(key))
        value = value.get(next(keys, None), value)
    if isinstance(value, str):
        if BASE64.fullmatch(value.strip()):
            return from_base64(value, value)
        if value.startswith("file://"):
            value = unquote(urlsplit(value).path)
    return image_source(value, root, trusted=trusted)


def picture_like(fields: Fields, ids: bool) -> list[str]:
    """Return the keys nothing read whose values look like pictures; `ids` counts ids as well."""
    skipped = () if ids else IDS
    return [
        name
        for key, value in fields.unread()
        if fold(key) not in skipped
        for name in picture_names(key, value)
    ]


def picture_names(name: str, value: Any, depth: int = DEPTH) -> Iterator[str]:
    """Yield the dotted name of a value that looks like a picture; a list by its first that does."""
    if isinstance(value, str):
        text = value.strip()
        forms = (PICTURE_PATH, PICTURE_PATHS, BASE64)
        if text.startswith("data:image") or any(form.fullmatch(text) for form in forms):
            yield name
    elif isinstance(value, bytes):
        if value.startswith(MAGIC):
            yield name
    elif hasattr(value, "convert") and hasattr(value, "tobytes"):
        yield name
    elif depth and isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            yield name
        else:
            for key, item in value.items():
                yield from picture_names(f"{name}.{key}", item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        found = (list(picture_names(name, item, depth - 1)) for item in value)
        yield from next(filter(None, found), [])


def _file_of(identity: str, key: str, root: Path | None) -> str | None:
    """Return the file that an image id means. Raises RowError without exactly one."""
    folder = None if root is None else os.path.abspath(root)
    names = _files(folder, os.stat(folder).st_mtime_ns).get(_bare(identity), []) if folder else []
    if len(names) == 1:
        return names[0]
    if not names and key in MAYBE_FILE_IDS:
        return None
    fits = f"fits {', '.join(sorted(names)[:3])}" if names else f"names no file in {folder}"
    raise RowError(
        f"it has no picture, and its {key} {identity[:40]} {fits}: say how files are named, as in "
        f"--columns 'image=COCO_val2014_{{{key}:012}}.jpg'"
    )


@lru_cache(maxsize=4)
def _files(folder: str, changed: int) -> dict[str, list[str]]:
    """Return the files of a folder and of the folders in it, by what an id would call them."""
    found: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                with os.scandir(entry) as inner:
                    names = [f"{entry.name}/{file.name}" for file in inner if file.is_file()]
            else:
                names = [entry.name]
            for name in names:
                stem, suffix = os.path.splitext(os.path.basename(name))
                if not suffix or PICTURE_PATH.fullmatch(name):
                    found.setdefault(_bare(stem), []).append(name)
    return found


def _bare(name: str) -> str:
    """A file's stem, or an id, without COCO's prefix and leading zeros."""
    stem = os.path.splitext(name)[0] if PICTURE_PATH.fullmatch(name) else name
    match = COCO.fullmatch(stem)
    stem = match[1] if match else stem
    return (stem.lstrip("0") or "0") if stem.isdigit() else stem
