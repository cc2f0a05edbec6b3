"""Rows in files of text: JSON, JSONL, CSV and TSV, and objects of JSON with lists in them."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsurgery.data.fields import kind_of
from dcsurgery.data.pictures import RowError
from dcsurgery.errors import RequestError

HINT = (
    "pass a .json, .jsonl, .csv, .tsv, .parquet or .arrow file, a folder of them, a saved data "
    "set, or a Hub data set's id"
)
# Files that hold data in a form that is not read, and what to do.
ADVICE = {
    ".gz": "gunzip it first",
    ".bz2": "bunzip2 it first",
    ".xz": "unxz it first",
    ".zst": "unzstd it first",
    ".zip": "unzip it, and name the folder or file in it",
    ".tar": "unpack it, and name the folder or file in it",
    ".tgz": "unpack it, and name the folder or file in it",
    ".xlsx": "save the table as .csv",
    ".xls": "save the table as .csv",
    ".yaml": "name the data files that it lists, one at a time",
    ".yml": "name the data files that it lists, one at a time",
    ".txt": "write it as .csv or .tsv with a line of column names",
    ".pkl": "pickles can run code: save the rows as .jsonl or .parquet",
    ".pickle": "pickles can run code: save the rows as .jsonl or .parquet",
    ".npy": "save the rows as .jsonl or .parquet",
    ".npz": "save the rows as .jsonl or .parquet",
    ".lmdb": "save the rows as .jsonl or .parquet",
}
HEAD = 1024
# Under these keys an object of JSON holds its rows.
LISTS = (
    "data", "rows", "annotations", "questions", "samples", "examples", "items", "instances",
    "images",
)  # fmt: skip
# A file's lists by name; "" is a list of rows without one.
Tables = dict[str, Sequence[Any]]


def read_text_files(paths: Sequence[Path], split: str) -> Sequence[Any]:
    """Return the rows of files one after the other; questions joined with their annotations.

    Raises RequestError.
    """
    tables: dict[str, list[Sequence[Any]]] = {}
    for path in paths:
        for name, rows in read_tables(path, split).items():
            tables.setdefault(name, []).append(rows)
    whole = {name: parts[0] if len(parts) == 1 else Chain(parts) for name, parts in tables.items()}
    annotations = whole.get("annotations")
    if annotations is not None and "questions" in whole:
        return _joined(whole["questions"], annotations, "question_id", "question_id")
    if annotations is not None and "images" in whole:
        return _joined(whole["images"], annotations, "id", "image_id")
    return whole[""] if list(whole) == [""] else Chain(list(whole.values()))


def read_tables(path: Path, split: str) -> Tables:
    """Return the lists that one file holds. Raises RequestError."""
    kind = path.suffix.lower()
    if kind in ADVICE:
        raise RequestError(f"{path} is not read as it is", hint=ADVICE[kind])
    read = READERS.get(kind, _json)
    return read(path, split)


class Chain(Sequence[Any]):
    """Sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._places = [(part, index) for part in parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        part, at = self._places[index]
        return part[at]


def _joined(
    first: Sequence[Any], annotations: Sequence[Any], own: str, other: str
) -> Sequence[Any]:
    """Return annotations with the question or image they belong to; those of none as they are.

    Questions without an annotation stay, images do not. Raises RequestError where none fits.
    """
    by_id = {str(item.get(own)): item for item in first if isinstance(item, Mapping)}
    used, rows = set(), []
    for item in annotations:
        key = str(item.get(other)) if isinstance(item, Mapping) else ""
        used.add(key)
        if key not in by_id:
            rows.append(item)
            continue
        rows.append({**by_id[key], **item})
    if by_id and not used & by_id.keys():
        raise RequestError(
            f"no annotation's {other} is the {own} of a question or an image",
            hint="name the questions and the annotations of one split",
        )
    if own == other:
        rows += [item for key, item in by_id.items() if key not in used]
    return rows


def _json(path: Path, split: str) -> Tables:
    text = _decoded(path.read_bytes(), path)
    try:
        found = _parsed(text)
    except RowError as error:
        raise RequestError(f"{path}: {error.message}", hint="name every key once") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip()[:1] == "{":
            return _lines(path, split)
        raise RequestError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            hint="a list of rows is expected: [{...}, ...]; one row per line is .jsonl",
        ) from None
    except RecursionError:
        raise RequestError(f"{path} is nested too deeply to be data", hint=HINT) from None
    if isinstance(found, list):
        return {"": found}
    tables = _named_lists(found, split) if isinstance(found, dict) else None
    if tables is None:
        keys = f" with the keys {', '.join(list(found)[:10])}" if isinstance(found, dict) else ""
        raise RequestError(
            f"{path} holds {kind_of(found)}{keys}, not a list of rows",
            hint="write [{...}, ...], or one row per line into a .jsonl file",
        )
    return tables


def _named_lists(found: dict[str, Any], split: str) -> Tables | None:
    lists = {
        name: rows
        for name, rows in found.items()
        if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows[:1])
    }
    if "annotations" in lists and ("questions" in lists or "images" in lists):
        return {
            name: lists[name] for name in ("annotations", "questions", "images") if name in lists
        }
    for name in (split, *LISTS):
        if name in lists:
            # The Hub's viewer puts every row under a key of its own.
            rows = [row.get("row", row) if set(row) & {"row_idx"} else row for row in lists[name]]
            return {name if name in ("annotations", "questions") else "": rows}
    if found and all(isinstance(row, Mapping) for row in found.values()):
        return {"": [{"id": name, **row} for name, row in found.items()]}
    return None


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RequestError(
            f"{path} is not UTF-8 text: byte {error.start} in line {line}",
            hint="save it as UTF-8, or unpack it",
        ) from None


class _Spans(Sequence[Any]):
    """Parts of a file, parsed when asked for: only their places are kept."""

    def __init__(
        self, path: Path, spans: list[tuple[int, int, int]], parse: Callable[[str], Any]
    ) -> None:
        self._path, self._spans, self._parse = path, spans, parse

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: Any) -> Any:
        start, end, number = self._spans[index]
        with self._path.open("rb") as file:
            file.seek(start)
            raw = file.read(end - start)
        try:
            return self._parse(raw.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise RowError(
                f"line {number} is not valid JSON: {error.msg} at column {error.colno}"
            ) from None
        except UnicodeDecodeError:
            raise RowError(f"line {number} is not UTF-8 text") from None
        except RecursionError:
            raise RowError(f"line {number} is nested too deeply") from None
        except RowError as error:
            raise RowError(f"line {number}: {error.message}") from None
        except (ValueError, csv.Error) as error:
            raise RowError(f"line {number}: {error}") from None


def _parsed(text: str) -> Any:
    """Return the value that JSON writes. Raises ValueError, RowError for a key that comes twice."""
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if value != found[key]:
                raise RowError(f"the key {key!r} is there twice, with different values")
    return found


def _lines(path: Path, split: str) -> Tables:
    with path.open("rb") as file:
        if file.read(HEAD).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
            return _json(path, split)  # one list, whatever its name says
    spans = []
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            if line.strip():
                spans.append((start, start + len(line), number))
            start += len(line)
    return {"": _Spans(path, spans, _parsed)}


def _table(path: Path, split: str) -> Tables:
    """Read CSV or TSV: names in the first line, quoted as spreadsheets do it."""
    csv.field_size_limit(sys.maxsize)  # pictures are long
    with path.open("rb") as file:
        raw = file.readline()
    first = _decoded(raw, path)
    signs = ("\t",) if path.suffix.lower() == ".tsv" else (",", ";", "\t")
    sign = max(signs, key=first.count)
    spans = []
    with path.open("rb") as file:
        place = _Place(file)
        # Strict: a quote too many would swallow the lines up to the next one.
        records = csv.reader(place, delimiter=sign, strict=True)
        start, line = 0, 1
        try:
            names = [name.strip() for name in next(records, [])]
            start, line = place.at, place.line + 1
            for record in records:
                if any(cell.strip() for cell in record):
                    spans.append((start, place.at, line))
                start, line = place.at, place.line + 1
        except csv.Error as error:
            raise RequestError(
                f"{path}, line {line}: {error}",
                hint='put a cell with quotes into quotes and double them: "say ""cheese"""',
            ) from None
    if len(set(names)) < len(names) or "" in names[1:]:
        raise RequestError(
            f"{path} names a column twice, or not at all: {', '.join(names)}",
            hint="the first line names every column once",
        )
    return {"": _Spans(path, spans, lambda text: _record(text, names, sign))}


class _Place:
    """The lines of a file as text, and how far it has been read. Bytes that are no text stay."""

    def __init__(self, file: Any) -> None:
        self._file, self.at, self.line = file, 0, 0

    def __iter__(self) -> Iterator[str]:
        for raw in self._file:
            self.at += len(raw)
            self.line += 1
            yield raw.decode("utf-8-sig" if self.line == 1 else "utf-8", "replace")


def _record(text: str, names: list[str], sign: str) -> dict[str, str | None]:
    (cells,) = csv.reader(io.StringIO(text, newline="\n"), delimiter=sign, strict=True)
    if len(cells) != len(names):
        raise ValueError(f"it has {len(cells)} cells under {len(names)} columns")
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}


READERS: Mapping[str, Callable[[Path, str], Tables]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".csv": _table,
    ".tsv": _table,
}
