"""What records of published benchmark files become: rows with LLaVA's prompts.

Each function takes the files and a split and yields rows, or why a record becomes none. What is
not laid out as published raises KeyError and its like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsurgery.data.text_files import read_text_files
from dcsurgery.errors import RequestError

# LLaVA's docs/Evaluation.md. The request for a letter is added where rows are read.
SHORT = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
# Split by split, the pictures that COCO's ids name.
COCO = re.compile(r"(?:train|val|test)20\d\d")
PICTURE = (".jpg", ".jpeg", ".png")

Raw = Mapping[str, Any]
Made = dict[str, Any]


class Left(Exception):
    """A record becomes no row; the message is the reason, by which such records are counted."""


def _each(rows: Sequence[Any], make: Callable[[Raw], Made]) -> Iterator[Made | Left]:
    for raw in rows:
        try:
            yield make(raw)
        except Left as left:
            yield left


def _answers(values: Sequence[Any] | None) -> list[str]:
    """Return what humans said, ten of them in VQA's sets. Raises Left."""
    if not values:
        raise Left("no answer, as in test splits")
    return [str(item["answer"] if isinstance(item, Mapping) else item) for item in values]


def _short(question: str) -> str:
    return f"{question.strip()}\n{SHORT}"


def gqa(files: list[Path], split: str) -> Iterator[Made | Left]:
    """GQA's questions: an object of them by id."""

    def make(raw: Raw) -> Made:
        if raw.get("answer") is None:
            raise Left("no answer, as in test splits")
        row = {"id": str(raw["id"]), "image": f"{raw['imageId']}.jpg"}
        kind = raw.get("types", {}).get("structural")
        row |= {"question": _short(raw["question"]), "answer": raw["answer"]}
        return row | ({"type": kind} if kind else {})

    return _each(read_text_files(files, split), make)


def vqa(files: list[Path], split: str) -> Iterator[Made | Left]:
    """VQA v2 and OK-VQA: questions and annotations, joined; pictures of COCO."""
    parts = {match[0] for file in files if (match := COCO.search(file.name))}
    if len(parts) != 1:
        raise RequestError(
            f"the names of the files do not say which pictures of COCO they ask about: {files[0]}",
            hint="keep their names, as in v2_OpenEnded_mscoco_val2014_questions.json",
        )
    (part,) = parts

    def make(raw: Raw) -> Made:
        answers = _answers(raw.get("answers"))
        image = f"COCO_{part}_{int(raw['image_id']):012}.jpg"
        row = {"id": str(raw["question_id"]), "image": image, "question": _short(raw["question"])}
        agreed = raw.get("multiple_choice_answer")
        row |= {"answer": agreed} if agreed is not None else {}
        kind = raw.get("answer_type") if agreed is not None else raw.get("question_type")
        return {**row, "answers": answers} | ({"type": kind} if kind else {})

    return _each(read_text_files(files, split), make)


def textvqa(files: list[Path], split: str) -> Iterator[Made | Left]:
    """TextVQA; LLaVA's own questions, with OCR tokens in them, where its file comes first."""
    asked = [file for file in files if file.suffix == ".jsonl"]
    prompts: dict[tuple[str, str], str] = {}
    for line in read_text_files(asked, split) if asked else ():
        lines = line["text"].split("\n")
        own = lines[lines[0].startswith("Reference OCR token:")]
        prompts[str(line["question_id"]), own.strip().lower()] = line["text"]

    def make(raw: Raw) -> Made:
        key = (str(raw["image_id"]), raw["question"].strip().lower())
        if asked and key not in prompts:
            raise Left(f"not asked in {asked[0].name}")
        question = prompts[key] if asked else _short(raw["question"])
        row = {"id": str(raw["question_id"]), "image": f"{raw['image_id']}.jpg"}
        return {**row, "question": question, "answers": _answers(raw.get("answers"))}

    rest = [file for file in files if file not in asked]
    if not rest:
        raise RequestError(
            f"{asked[0]} has no answers", hint="add its answers: FILE.jsonl,TextVQA_0.5.1_val.json"
        )
    return _each(read_text_files(rest, split), make)


def vizwiz(files: list[Path], split: str) -> Iterator[Made | Left]:
    """VizWiz's list, asked as LLaVA asks it."""

    def make(raw: Raw) -> Made:
        answers = _answers(raw.get("answers"))
        question = f"{raw['question'].strip()}\n{UNANSWERABLE}\n{SHORT}"
        row = {"id": raw["image"], "image": raw["image"], "question": question, "answers": answers}
        return row | ({"type": raw["answer_type"]} if "answer_type" in raw else {})

    return _each(read_text_files(files, split), make)


def pope(files: list[Path], split: str) -> Iterator[Made | Left]:
    """POPE's ids begin anew in each of its files, which are the question types."""
    for file in files:
        kind = file.stem.rpartition("_")[2]

        def make(raw: Raw, kind: str = kind) -> Made:
            row = {"id": f"{kind}-{raw['question_id']}", "image": raw["image"]}
            return {**row, "question": _short(raw["text"]), "answer": raw["label"], "type": kind}

        yield from _each(read_text_files([file], split), make)


def scienceqa(files: list[Path], split: str) -> Iterator[Made | Left]:
    """ScienceQA's problems of a split that have a picture."""

    def make(raw: Raw) -> Made:
        if raw["split"] != split:
            raise Left(f"of the split {raw['split']}")
        if not raw["image"]:
            raise Left("no picture")
        row = {"id": str(raw["id"]), "image": f"{raw['id']}/{raw['image']}"}
        row |= {"hint": raw["hint"]} if raw.get("hint") else {}
        asked = {"question": raw["question"], "options": raw["choices"], "answer": raw["answer"]}
        return {**row, **asked, "type": raw["subject"]}

    return _each(read_text_files(files, split), make)


def seedbench(files: list[Path], split: str) -> Iterator[Made | Left]:
    """SEED-Bench's questions about pictures."""

    def make(raw: Raw) -> Made:
        if raw["data_type"] != "image":
            raise Left(f"its data is a {raw['data_type']}")
        options = [raw[f"choice_{letter}"] for letter in "abcd"]
        row = {"id": str(raw["question_id"]), "image": raw["data_id"], "question": raw["question"]}
        kind = str(raw["question_type_id"])
        return {**row, "options": options, "answer": raw["answer"], "type": kind}

    return _each(read_text_files(files, split), make)


def mme(files: list[Path], split: str) -> Iterator[Made | Left]:
    """MME: a folder per task, a text file per picture with a question and an answer a line."""
    (root,) = files
    for text in sorted(root.glob("*/*.txt")) + sorted(root.glob("*/questions_answers_YN/*.txt")):
        task = text.relative_to(root).parts[0]
        folder = text.parent.parent / "images" if text.parent.name != task else text.parent
        picture = next((p for s in PICTURE if (p := folder / f"{text.stem}{s}").is_file()), None)
        for number, line in enumerate(text.read_text(encoding="utf-8").splitlines()):
            if not line.strip():
                continue
            if picture is None:
                yield Left("its picture is not there")
                continue
            question, answer = line.strip().split("\t")
            row = {"id": f"{task}/{text.stem}/{number}", "type": task, "answer": answer}
            image = picture.relative_to(root).as_posix()
            own = question.replace("Please answer yes or no.", "")
            yield {**row, "image": image, "question": _short(own)}
