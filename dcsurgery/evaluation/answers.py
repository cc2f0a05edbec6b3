"""answers.jsonl: what models said, written as it comes, so that an evaluation can go on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcsurgery.checkpoint.written import require_ours
from dcsurgery.errors import OutputExistsError

FILE, REPORT, CHART = FILES = ("answers.jsonl", "report.json", "report.png")
# In the first line of the answers, and in the report.
MARKS = {"data_sha256", "models", "settings"}
ELSEWHERE = "choose another folder with -o"


@dataclass(frozen=True)
class Answer:
    """One row's result: the text said and its score, or the mean loss over `tokens`.

    `read` is what the text was taken for ("B", "yes"), `clear` whether that is plain.
    """

    model: int
    row: int
    id: str
    score: float
    answer: str | None = None
    tokens: int = 1
    read: str | None = None
    clear: bool = True


class AnswerFile:
    """The answers of one evaluation, known by its header: the same data, models and settings."""

    def __init__(self, folder: Path, header: dict[str, Any], *, overwrite: bool = False) -> None:
        """Open the file of an evaluation, or begin it.

        Raises OutputExistsError when the folder holds another evaluation, or files of the same
        names that no evaluation wrote: those are not replaced with `overwrite` either.
        """
        self._path = folder / FILE
        self.found: dict[tuple[int, int], Answer] = {}
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size and not overwrite:
            self._resume(header)
        else:
            self._path.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def _resume(self, header: dict[str, Any]) -> None:
        raw = self._path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]  # a crash may have cut the last line
        first, *lines = whole.splitlines() or [b"{}"]
        try:
            before = json.loads(first)
            answers = [Answer(**json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            before, answers = None, []
        if before != header:
            raise OutputExistsError(
                f"{self._path} belongs to another evaluation{_difference(before, header)}",
                hint="choose another folder with -o, or pass --overwrite",
            )
        if len(whole) < len(raw):
            os.truncate(self._path, len(whole))
        self.found = {(answer.model, answer.row): answer for answer in answers}

    def add(self, answers: list[Answer]) -> None:
        """Append answers and make sure that they are on the disk."""
        with self._path.open("a", encoding="utf-8") as file:
            for answer in answers:
                file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.found |= {(answer.model, answer.row): answer for answer in answers}

    def of(self, model: int) -> dict[int, Answer]:
        """Return the answers of one model by the places of their rows."""
        return {row: found for (at, row), found in self.found.items() if at == model}


def read_answers(folder: Path) -> dict[int, Answer]:
    """Return the answers of a finished evaluation of one model, by the places of their rows."""
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()[1:]
    return {answer.row: answer for answer in (Answer(**json.loads(line)) for line in lines)}


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files of our names are somebody else's. Raises OutputExistsError."""
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is not a folder", hint=ELSEWHERE)
    there = [path for name in FILES if os.path.lexists(path := folder / name)]
    odd = [path.name for path in there if path.is_symlink() or not path.is_file()]
    if there and not odd:
        telling = folder / (FILE if (folder / FILE).exists() else REPORT)
        raw = telling.read_bytes() if telling.exists() else b"?"
        ours = not raw or set(_object(raw.split(b"\n")[0])) >= MARKS or set(_object(raw)) >= MARKS
        odd = [] if ours else [path.name for path in there]
    require_ours(folder, odd, ELSEWHERE)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _difference(before: Any, header: dict[str, Any]) -> str:
    if not isinstance(before, dict):
        return ""
    names = [name for name in header if before.get(name) != header[name]]
    return f" (other {', '.join(names)})" if names else ""


def model_digest(folder: Path) -> str:
    """Return a digest that changes when a file of a model folder is written again."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found = path.stat()
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
