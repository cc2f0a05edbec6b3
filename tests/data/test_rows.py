from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.data.conversations import BadRow, BadRows, Row, Turn, for_training
from dcsurgery.data.layouts import read_row
from dcsurgery.data.pictures import RowError
from dcsurgery.data.rows import data_digest, read_rows
from dcsurgery.errors import RequestError
from tests.training.pictures import answer, picture, save_picture, user


def llava(**changes: Any) -> dict[str, Any]:
    said = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A ball."},
    ]
    return {"id": "7", "image": "a.png", "conversations": said, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_picture(tmp_path / "a.png")
    return tmp_path


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_llava_json_is_read(folder: Path) -> None:
    rows = read_rows(write(folder / "d.json", [llava()]))
    assert len(rows) == 1
    assert rows[0].turns == (user(None, "What is it?"), answer("A ball."))
    assert rows[0].id == "7" and rows[0].answers == ("A ball.",)
    assert rows[0].images[0].open().size == (64, 32)


def test_jsonl_holds_either_form_one_row_per_line(folder: Path) -> None:
    messages = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": "Because."},
        ],
        "images": ["a.png"],
        "question_type": "reason",
    }
    text = "\n\n".join(json.dumps(row) for row in (llava(), messages))
    rows = read_rows(write(folder / "d.jsonl", text))
    assert len(rows) == 2
    assert rows[1].turns == (user(None, "Why?"), answer("Because."))
    assert (rows[1].id, rows[1].kind) == ("row 2", "reason")


def test_questions_with_answers_and_options_are_read(folder: Path) -> None:
    raw = {
        "question_id": 3,
        "image": "a.png",
        "question": "Which?",
        "answers": [{"answer": "two"}, {"answer": "2"}],
        "options": ["one", "two"],
    }
    row = read_row(raw, 1, folder)
    assert row.turns == (user(None, "Which?"), answer("two"))
    assert (row.id, row.answers, row.options) == ("3", ("two", "2"), ("one", "two"))


def test_pictures_stand_where_the_text_shows_them(folder: Path) -> None:
    said = [
        {"from": "human", "value": "Compare <image> and <image>."},
        {"from": "gpt", "value": "Same."},
        {"from": "human", "value": "And\n<image>\n"},
        {"from": "gpt", "value": "Too."},
    ]
    row = read_row(llava(image=["a.png"] * 3, conversations=said), 1, folder)
    assert row.turns[0].parts == ("Compare ", None, " and ", None, ".")
    assert row.turns[2].parts == ("And", None)


def test_messages_without_placeholders_show_their_pictures_first(folder: Path) -> None:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It."}]
    row = read_row({"messages": messages, "images": ["a.png"]}, 1, folder)
    assert row.turns[0] == user(None, "What?")


def features() -> Any:
    import datasets

    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    return datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": [part]}],
            "images": [datasets.Image()],
        }
    )


@pytest.fixture(scope="module")
def records() -> Any:
    import datasets

    datasets.disable_progress_bars()
    question = [{"type": "image", "text": None}, {"type": "text", "text": "hi"}]
    said = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": "yo"}]},
    ]
    columns = {"messages": [said] * 2, "images": [[picture()], [picture(8, 8)]]}
    return datasets.Dataset.from_dict(columns, features=features())


@pytest.mark.parametrize("form", ["parquet", "folder of parquet", "arrow", "saved"])
def test_hugging_face_data_sets_are_read(form: str, records: Any, tmp_path: Path) -> None:
    if form in ("parquet", "folder of parquet"):
        place = tmp_path / "train.parquet"
        records.to_parquet(place)
    else:
        place = tmp_path / "saved"
        records.save_to_disk(place)
    if form == "folder of parquet":
        place = tmp_path
    elif form == "arrow":
        place = next(place.glob("*.arrow"))
    rows = read_rows(place)
    assert len(rows) == 2
    assert rows[1].turns == (user(None, "hi"), answer("yo"))
    assert rows[1].images[0].open().size == (8, 8)


def test_rows_of_a_stream_arrive_with_open_pictures(records: Any) -> None:
    from dcsurgery.data.rows import Rows

    rows = Rows("stream", records.to_iterable_dataset(), root=None, trusted=True)
    assert rows.streamed
    found = [row for row in rows if isinstance(row, Row)]
    assert [row.images[0].open().size for row in found] == [(64, 32), (8, 8)]


HUMAN, GPT = {"from": "human", "value": "hm"}, {"from": "gpt", "value": "oh"}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no object": ([1], "not an object"),
    "no conversation": (
        {"id": 1},
        "no layout fits its keys id; understood are conversations, mess",
    ),
    "conversation is text": (llava(conversations="hello"), "text, not a list"),
    "unknown role": (llava(conversations=[{"from": "robot", "value": ""}]), "'robot'; known"),
    "value is a number": (llava(conversations=[{"from": "gpt", "value": 3}]), "a int, not text"),
    "image without placeholder": (llava(conversations=[HUMAN, GPT]), "shows 0 images, .* has 1"),
    "placeholder without image": (llava(image=None), "shows 1 images, .* has 0"),
    "image is a number": (llava(image=5), "neither a path nor a picture but int"),
    "path leaves the folder": (llava(image="../a.png"), "leaves the images folder"),
    "absolute path": (llava(image="/etc/passwd"), "leaves the images folder"),
    "path in the middle": (llava(image="x/../../a.png"), "leaves the images folder"),
    "URL": (llava(image="https://host/a.png"), "is a URL"),
    "NUL in the path": (llava(image="a\0.png"), "no path"),
    "video": (llava(conversations=[{"from": "human", "value": "<video>"}, GPT]), "a video"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_read_say_why(case: str, tmp_path: Path) -> None:
    raw, reason = BAD_ROWS[case]
    with pytest.raises(RowError, match=reason):
        read_row(raw, 1, tmp_path / "images")


UNTRAINABLE: dict[str, tuple[tuple[Turn, ...], str]] = {
    "no answer": ((user("hi"),), "no answer"),
    "empty answer": ((user("hi"), answer(" \n")), "answer is empty"),
    "two questions": ((user("a"), user("b"), answer("c")), "assistant is due"),
    "two answers": ((user("a"), answer("b"), answer("c")), "user is due"),
    "answer with a picture": ((user("a"), Turn("assistant", ("b", None))), "only the user"),
    "picture after the last answer": ((user("a"), answer("b"), user(None)), "no answer"),
}


@pytest.mark.parametrize("case", UNTRAINABLE)
def test_rows_that_cannot_be_trained_on_say_why(case: str) -> None:
    turns, reason = UNTRAINABLE[case]
    with pytest.raises(RowError, match=reason):
        for_training(Row("1", turns))


def test_training_starts_with_a_question_and_ends_with_an_answer() -> None:
    turns = (Turn("system", ("Be brief.",)), answer("x"), user("a"), answer("b"), user("c"))
    assert for_training(Row("1", turns)).turns == (turns[0], *turns[2:4])


BAD_FILES = {
    "d.json": ('[{"id": 1},\n {"id": }]', r"line 2, column 9"),
    "e.json": ('{"id": 1}', "an object with the keys id, not a list"),
    "f.json": ("[]", "has no rows"),
    "g.json": ("[" * 100_000, "nested too deeply|line 1"),
    "h.jsonl": ("\n\n", "has no rows"),
    "i.parquet": ("no parquet at all", "cannot be read as a data set"),
}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_hold_no_data_say_where(name: str, tmp_path: Path) -> None:
    content, reason = BAD_FILES[name]
    with pytest.raises(RequestError, match=reason):
        read_rows(write(tmp_path / name, content))


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_bytes(b'[{"id":\n"\xff"}]')
    with pytest.raises(RequestError, match="not UTF-8 text: byte 9 in line 2"):
        read_rows(tmp_path / "d.json")


@pytest.mark.parametrize("name", ["gone.json", "a/b/c", "folder", " "])
def test_data_that_is_not_there_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=r"no data file|no data set"):
        read_rows(str(tmp_path / name) if name == "folder" else name)


def test_a_broken_line_is_one_bad_row(folder: Path) -> None:
    rows = read_rows(write(folder / "d.jsonl", f'{json.dumps(llava())}\n{{"id": 1,}}\n'))
    good, bad = rows
    assert isinstance(good, Row)
    assert bad == BadRow("row 2", bad.reason) and "line 2 is not valid JSON" in bad.reason
    assert rows.name_of(1) == "row 2"


def test_a_line_of_100_kilobytes_is_a_row(folder: Path) -> None:
    long = llava(conversations=[HUMAN, {"from": "gpt", "value": "x" * 100_000}], image=None)
    rows = read_rows(write(folder / "d.jsonl", json.dumps(long)))
    assert len(rows[0].turns[1].text) == 100_000


def test_bad_rows_are_an_error_above_their_share_only() -> None:
    bad = BadRows(200, 0.01)
    for index in (3, 3, 9):
        bad.add(index, BadRow(f"row {index}", "it is odd"))
        bad.check()
    bad.add(11, BadRow("row 11", "it is odd"))
    with pytest.raises(RequestError, match=r"3 of 200 rows .* 1 %: row 3: it is odd; row 9"):
        bad.check()
    assert len(bad) == 3 and 9 in bad and 4 not in bad


def test_digest_is_of_the_bytes_and_sees_every_file_of_a_folder(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "d.json", "[1]")
    assert data_digest(path) == hashlib.sha256(b"[1]").hexdigest()
    before = data_digest(tmp_path)
    write(tmp_path / "e.json", "[1]")
    assert len({before, data_digest(tmp_path), data_digest(path)}) == 3
