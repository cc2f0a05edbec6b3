"""Files that rows come in: tables of text, wrappers of JSON, folders, pairs, data sets."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from dcsurgery.data.conversations import BadRow, Row
from dcsurgery.data.records import Stream
from dcsurgery.data.rows import Rows, data_digest, read_rows
from dcsurgery.errors import RequestError
from tests.training.pictures import picture, save_picture


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        content if isinstance(content, str) else json.dumps(content), encoding="utf-8", newline=""
    )
    return path


def said(rows: Any) -> list[tuple[str, str]]:
    """The last question and answer of every row; why, for those that cannot be read."""
    return [
        (row.turns[-2].text, row.turns[-1].text) if isinstance(row, Row) else (row.id, row.reason)
        for row in rows
    ]


TABLES = {
    "quotes": 'question,answer\n"Red, or ""blue""?",blue\n',
    "line breaks": 'question,answer\n"Red,\nor blue?",blue\n',
    "windows": "question,answer\r\nRed?,blue\r\n",
    "no last line break": "question,answer\nRed?,blue",
    "a mark of byte order": "\ufeffquestion,answer\nRed?,blue\n",
    "semicolons": "question;answer\nRed, or blue?;blue\n",
    "tabs": "question\tanswer\nRed, or blue?\tblue\n",
    "bars": "question,answer\nRed | blue?,blue\n",
    "blank lines": "question,answer\n\nRed?,blue\n\n",
    "capitals": "Question,ANSWER\nRed?,blue\n",
    "another separator of lines": "question,answer\nRed\u2028or\x0bblue?,blue\n",
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_are_read_as_spreadsheets_write_them(case: str, tmp_path: Path) -> None:
    import csv

    text = TABLES[case]
    sign = max(",;\t", key=text.splitlines()[0].count)
    (wanted,) = (
        row
        for row in list(csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=sign))[
            1:
        ]
        if row
    )
    rows = read_rows(write(tmp_path / "d.csv", text))
    assert said(rows) == [tuple(wanted)]
    assert said([rows[0]]) == said(rows)


def test_tables_hold_pictures_lists_and_empty_cells(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(200, 200).save(buffer, "PNG")
    code = base64.b64encode(buffer.getvalue()).decode()
    assert len(code) > 131_072 > 2**16  # longer than csv's own limit
    head = "index\timage\tquestion\thint\tA\tB\tC\tanswer\n"
    text = f"{head}5\t{code}\tWhich?\t\tcat\tdog\t\tB\n6\t\tWhy?\tnan\tcat\tdog\tcow\tA\n"
    first, second = read_rows(write(tmp_path / "d.tsv", text))
    assert isinstance(first, Row) and isinstance(second, Row)
    assert (first.id, first.options, first.answers) == ("5", ("cat", "dog"), ("B",))
    assert first.images[0].open().size == (200, 200) and first.turns[0].text == "Which?"
    assert (second.images, second.turns[0].text) == ((), "Why?")


def test_a_line_with_other_cells_is_one_bad_row(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "d.csv", "question,answer\na,b\nc\nd,e,f\ng,h\n"))
    assert said(rows) == [
        ("a", "b"),
        ("row 2", "line 3: it has 1 cells under 2 columns"),
        ("row 3", "line 4: it has 3 cells under 2 columns"),
        ("g", "h"),
    ]


BAD_FILES: dict[str, tuple[str, str, str]] = {
    "a quote too many": ("d.csv", 'question,answer\n"a" or b,c\nd,e\n', "line 2: ',' expected"),
    "a quote that never ends": ("d.tsv", 'question\tanswer\na\t"b\nc\td\n', "line 2: unexpected"),
    "a column twice": ("d.csv", "answer,answer\na,b\n", "names a column twice"),
    "only names": ("d.csv", "question,answer\n", "has no rows"),
    "nothing": ("d.csv", "", "has no rows"),
    "an object of other things": ("d.json", '{"version": 1, "n": {}}', "the keys version, n"),
    "columns of JSON": ("d.json", '{"question": ["a"], "answer": ["b"]}', "keys question, answer"),
    "gzip": ("d.jsonl.gz", "x", "not read as it is"),
    "archive": ("d.tar", "x", "not read as it is"),
    "a spreadsheet": ("d.xlsx", "x", "not read as it is"),
    "a mixture": ("d.yaml", "x", "not read as it is"),
    "a pickle": ("d.pkl", "x", "not read as it is"),
    "text": ("d.txt", "a\tb\n", "not read as it is"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_not_read_say_what_to_do(case: str, tmp_path: Path) -> None:
    name, content, reason = BAD_FILES[case]
    with pytest.raises(RequestError, match=reason) as caught:
        read_rows(write(tmp_path / name, content))
    assert caught.value.hint


ROW = {"question": "What?", "answer": "It."}
WRAPPED: dict[str, Any] = {
    "data": {"version": 1, "data": [ROW]},
    "annotations": {"info": {}, "annotations": [ROW]},
    "questions": {"questions": [ROW], "question_type": {"x": 1}},
    "samples": {"samples": [ROW]},
    "the split": {"train": [ROW], "test": [ROW, ROW]},
    "the Hub's viewer": {"features": [{"name": "x"}], "rows": [{"row_idx": 0, "row": ROW}]},
    "by id": {"first": ROW},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_lists_in_objects_are_found(case: str, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "d.json", WRAPPED[case]))
    assert said(rows) == [("What?", "It.")]
    assert rows.name_of(0) == ("first" if case == "by id" else "row 1")


QUESTIONS = [
    {"question_id": 1, "image_id": 42, "question": "What?"},
    {"question_id": 2, "image_id": 42, "question": "Why?"},
    {"question_id": 3, "image_id": 42, "question": "Who?"},
]
ANNOTATIONS = [
    {"question_id": 2, "image_id": 42, "answers": [{"answer": "So."}, {"answer": "So."}]},
    {"question_id": 1, "image_id": 42, "multiple_choice_answer": "It."},
    {"question_id": 9, "image_id": 42, "multiple_choice_answer": "Lost."},
]


@pytest.mark.parametrize("how", ["comma", "beside", "folder", "one file"])
def test_questions_meet_their_annotations(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "vqa"
    save_picture(tmp_path / "COCO_train2014_000000000042.jpg")
    one, other = {"questions": QUESTIONS}, {"annotations": ANNOTATIONS}
    first = write(folder / "v2_train_questions.json", one | (other if how == "one file" else {}))
    if how != "one file":
        second = write(folder / "v2_train_annotations.json", other)
    data = {"comma": f"{first}, {second}" if how == "comma" else "", "folder": str(folder)}
    name = data.get(how) or (f"{first},{first.name.replace('questions', 'annotations')}")
    rows = list(read_rows(name if how != "one file" else first, images=tmp_path))
    assert said(rows[:2]) == [("Why?", "So."), ("What?", "It.")]
    assert isinstance(rows[0], Row) and rows[0].images[0].open().size == (64, 32)
    assert isinstance(rows[2], BadRow) and rows[2].id == "9"
    assert isinstance(rows[3], Row) and [turn.text for turn in rows[3].turns] == ["Who?"]


def test_questions_of_another_split_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "q.json", {"questions": QUESTIONS[:1]})
    write(tmp_path / "a.json", {"annotations": ANNOTATIONS[:1]})
    with pytest.raises(RequestError, match="question_id is the question_id of"):
        read_rows(f"{first},a.json")
    with pytest.raises(RequestError, match=r"no data file .*gone\.json"):
        read_rows(f"{first},gone.json")


def test_several_files_follow_each_other(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", [ROW])
    second = write(tmp_path / "b.jsonl", f"{json.dumps(ROW)}\n" * 2)
    third = write(tmp_path / "c.csv", "question,answer\nWhy?,So.\n")
    rows = read_rows(f"{first},{second},{third}")
    assert said(rows) == [("What?", "It.")] * 3 + [("Why?", "So.")]
    digests = {data_digest(f"{first},{second}"), data_digest(f"{second},{first}")}
    assert len({*digests, data_digest(first)}) == 3


def test_a_name_with_a_comma_is_one_file(tmp_path: Path) -> None:
    assert len(read_rows(write(tmp_path / "a,b.json", [ROW]))) == 1


def test_a_folder_gives_the_files_of_its_split(tmp_path: Path) -> None:
    for name, answer in (("train", "a"), ("train-2", "b"), ("test", "c")):
        write(tmp_path / f"{name}.json", [{**ROW, "answer": answer}])
    assert [answer for _, answer in said(read_rows(tmp_path))] == ["b", "a"]
    assert [answer for _, answer in said(read_rows(tmp_path, split="test"))] == ["c"]
    with pytest.raises(RequestError, match="no file of the split 'val'") as caught:
        read_rows(tmp_path, split="val")
    assert "test.json, train-2.json" in caught.value.hint
    write(tmp_path / "plain" / "constraint.jsonl", json.dumps(ROW))
    assert len(read_rows(tmp_path / "plain")) == 1


@pytest.mark.parametrize("split", ["", "train"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_image_folder_is_read_with_its_metadata(kind: str, split: str, tmp_path: Path) -> None:
    place = tmp_path / split
    place.mkdir(exist_ok=True)
    save_picture(place / "a.png")
    row = {"file_name": "a.png", "text": "A ball."}
    if kind == "csv":
        write(place / "metadata.csv", "file_name,text\na.png,A ball.\n")
    elif kind == "jsonl":
        write(place / "metadata.jsonl", json.dumps(row))
    else:
        datasets.Dataset.from_list([row]).to_parquet(place / "metadata.parquet")
    (found,) = read_rows(tmp_path)
    assert isinstance(found, Row) and found.layout == "caption"
    assert found.images[0].open().size == (64, 32)


@pytest.fixture(scope="module")
def classes() -> datasets.Dataset:
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": names,
            "answers": datasets.List(names),
            "category": datasets.ClassLabel(names=["easy", "hard"]),
            "more": [{"label": names}],
        }
    )
    columns: dict[str, list[Any]] = {
        "image": [picture(8, 8)] * 3,
        "question": ["What?"] * 3,
        "answer": [1, 0, -1],
        "answers": [[1, 1, 0], [0], []],
        "category": [1, 0, 0],
        "more": [[{"label": 1}], [], []],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("form", ["parquet", "arrow", "saved", "stream"])
def test_classes_are_their_names(form: str, classes: Any, tmp_path: Path) -> None:
    rows: Any
    if form == "stream":
        rows = Rows("stream", Stream(classes.to_iterable_dataset()), root=None, trusted=True)
    elif form == "parquet":
        classes.to_parquet(tmp_path / "d.parquet")
        rows = read_rows(tmp_path / "d.parquet")
    else:
        classes.save_to_disk(tmp_path / "saved")
        place = tmp_path / "saved"
        rows = read_rows(place if form == "saved" else next(place.glob("*.arrow")))
    first, second, third = rows
    assert (first.turns[-1].text, first.answers, first.kind) == (
        "dog",
        ("dog", "dog", "cat"),
        "hard",
    )
    assert (second.turns[-1].text, second.kind) == ("cat", "easy")
    assert [turn.text for turn in third.turns] == ["What?"]  # -1 is no class


def test_columns_of_a_stream_are_known_without_reading_it(classes: Any) -> None:
    assert Stream(classes.to_iterable_dataset()).column_names == classes.column_names
    plain = datasets.IterableDataset.from_generator(lambda: iter([{"ask": 1}]))
    assert Stream(plain).column_names == ["ask"]


def test_columns_name_those_of_a_data_set(classes: Any, tmp_path: Path) -> None:
    classes.remove_columns(["answer", "answers"]).to_parquet(tmp_path / "d.parquet")
    rows = read_rows(tmp_path / "d.parquet", columns={"answer": "category"})
    assert rows[0].turns[-1].text == "hard"
    with pytest.raises(RequestError, match="no column 'cat'") as caught:
        read_rows(tmp_path / "d.parquet", columns={"answer": "cat"})
    assert "image, question, category, more" in caught.value.hint
