"""Rows that would lose or change what they hold, unless somebody says so."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.data.columns import Columns
from dcsurgery.data.conversations import Row, for_training
from dcsurgery.data.layouts import UNDERSTOOD, read_row
from dcsurgery.data.pictures import RowError
from dcsurgery.data.rows import read_rows
from dcsurgery.errors import RequestError
from tests.training.pictures import save_picture

PICTURE = {"image": "a.png"}
ASKED = {**PICTURE, "question": "What?", "answer": "It."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("silence")
    for name in ("a.png", "b.png"):
        save_picture(folder / name, 8, 8)
    return folder


def written(folder: Path, name: str, text: str) -> list[Any]:
    (folder / name).write_text(text, encoding="utf-8")
    return list(read_rows(folder / name))


def talk(user: dict[str, Any] | None = None, said: dict[str, Any] | None = None) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "What?", **(user or {})},
        {"role": "assistant", "content": "It.", **(said or {})},
    ]
    return {"messages": turns}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a picture in a turn": (talk({"images": ["a.png"]}), "turn's 'images' .*not read"),
    "another picture in a turn": ({**PICTURE, **talk({"image": "b.png"})}, "turn's 'image'"),
    "a turn without loss": ({**PICTURE, **talk(said={"loss": False})}, "'loss' false"),
    "a turn of weight 0": ({**PICTURE, **talk(said={"weight": 0})}, "'weight' 0"),
    "an untrained turn": ({**PICTURE, **talk(said={"train": False})}, "'train' false"),
    "a call of a tool": (talk(said={"tool_calls": [{"id": 1}]}), "'tool_calls'"),
    "an unwanted answer": ({**PICTURE, **talk(), "label": False}, "'label' false"),
    "keys that fold alike": ({**ASKED, "Answer": "Other."}, "'answer' and 'Answer'"),
    "an answer of lists": ({**ASKED, "answer": [["a", "b"], ["a"]]}, "a list in a list"),
    "a picture in an answer": ({**ASKED, "answer": "see <image>"}, "the assistant shows an image"),
    "half a character": ({**ASKED, "question": "What \ud83d?"}, "half a character"),
    "options of lists": ({**ASKED, "options": [["A", "x"], ["B", "It."]]}, "option is a list"),
    "a list without quotes": ({**ASKED, "options": "[Red, It.]"}, "one text, '.Red, It.."),
    "a caption with a label": ({**PICTURE, "caption": "left of it", "label": 0}, "caption, label"),
    "a system of lists": ({**ASKED, "system": ["a", "b"]}, "its system is a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(name: str, folder: Path) -> None:
    raw, why = REFUSED[name]
    with pytest.raises(RowError, match=why):
        read_row(raw, 1, folder)


@pytest.mark.parametrize("said", [{"loss": True}, {"weight": 1}, {"weight": 1.0}, {"loss": None}])
def test_a_turn_that_is_trained_may_say_so(said: dict[str, Any], folder: Path) -> None:
    row = read_row({**PICTURE, **talk(said=said)}, 1, folder)
    assert for_training(row).turns[-1].text == "It."


@pytest.mark.parametrize("key", ["completion", "response", "output", "outputs", "target"])
def test_a_written_list_that_is_an_answer_stays_one(key: str, folder: Path) -> None:
    row = read_row({**PICTURE, "question": "As JSON?", key: '["red", "blue"]'}, 1, folder)
    assert row.turns[-1].text == '["red", "blue"]' and row.answers == ('["red", "blue"]',)


def test_a_key_without_a_value_hides_none(folder: Path) -> None:
    row = read_row({**ASKED, "answer": None, "Answer": "It."}, 1, folder)
    assert row.answers == ("It.",)
    row = read_row({"Question": None, **ASKED}, 1, folder)
    assert row.turns[0].text == "What?"


def test_the_user_can_say_which_of_two_keys_is_meant(folder: Path) -> None:
    for column in ("answer", "Answer"):
        named = Columns({"answer": column}, UNDERSTOOD)
        row = read_row({**ASKED, "Answer": "Other."}, 1, folder, columns=named)
        assert row.answers == ({"answer": "It.", "Answer": "Other."}[column],)
    named = Columns({"caption": "caption"}, UNDERSTOOD)
    row = read_row({**PICTURE, "caption": "left", "label": 0}, 1, folder, columns=named)
    assert row.turns[-1].text == "left"


def test_a_completion_of_one_message_is_its_words(folder: Path) -> None:
    said = {"role": "assistant", "content": "It."}
    raw = {**PICTURE, "prompt": [{"role": "user", "content": "What?"}], "completion": said}
    assert read_row(raw, 1, folder).turns[-1].text == "It."


def test_what_an_unanswered_row_has_is_listed(folder: Path) -> None:
    raw = {**PICTURE, "prompt": "What?", "chosen": "It.", "rejected": "That."}
    with pytest.raises(RowError, match="no answer; not read: chosen, rejected"):
        for_training(read_row(raw, 1, folder))


def test_json_with_a_key_twice_is_refused(folder: Path) -> None:
    line = '{"image": "a.png", "question": "What?", "answer": "No.", "answer": "It."}'
    with pytest.raises(RequestError, match="'answer' is there twice"):
        written(folder, "twice.json", f"[{line}]")
    (row,) = written(folder, "twice.jsonl", line)
    assert "'answer' is there twice" in row.reason


def test_a_list_of_rows_in_jsonl_is_read(folder: Path) -> None:
    for indent in (None, 1):
        text = json.dumps([ASKED, ASKED], indent=indent)
        rows = written(folder, "list.jsonl", text)
        assert [row.answers for row in rows] == [("It.",)] * 2


def letters(folder: Path, **raw: Any) -> Row:
    (row,) = written(folder, "options.json", json.dumps([{**PICTURE, "question": "Q", **raw}]))
    assert isinstance(row, Row), row
    return row


@pytest.mark.parametrize("names", [("x1", "y"), ("10", "20"), ("ball", "cube")])
def test_an_options_own_name_is_trained_as_its_letter(names: tuple[str, str], folder: Path) -> None:
    options = {names[0]: "cat", names[1]: "dog"}
    row = letters(folder, options=options, answer=names[1].upper())
    assert row.turns[-1].text == "B" and row.right == (1,)


@pytest.mark.parametrize("none", ["none", "NaN", "null"])
def test_a_table_may_write_that_there_are_no_options(none: str, folder: Path) -> None:
    row = letters(folder, options=none, answer="cat")
    assert row.turns[0].text == "Q" and row.turns[-1].text == "cat"


def test_a_picture_below_a_question_keeps_its_line_below_the_options(folder: Path) -> None:
    row = letters(folder, question="Which?\n<image>", options=["cat", "dog"], answer="dog")
    first, picture = row.turns[0].parts
    assert picture is None
    assert first is not None and first.startswith("Which?\nA. cat") and first.endswith("tly.\n")


def test_half_a_character_is_refused_wherever_it_is_and_can_be_printed(folder: Path) -> None:
    rows = [
        {**ASKED, "answer": "\ud83d"},
        {**ASKED, "answers": ["It.", "\ud83d"]},
        {**ASKED, "system": "\ud83d"},
        {**ASKED, "options": ["It.", "\ud83d"]},
        {**ASKED, "question": "\ud83d?", "id": "\ud83d"},
        {**ASKED, "image": "\ud83d.png"},
    ]
    found = written(folder, "half.json", json.dumps(rows))
    assert all("half a character" in row.reason for row in found[:5])
    with pytest.raises(RowError) as caught:
        found[5].images[0].check()
    for text in (*(f"{row.id} {getattr(row, 'reason', '')}" for row in found), str(caught.value)):
        assert text.encode()


@pytest.mark.parametrize(
    "name", ["folder\\c.png", "folder%2Fc.png", " folder/c.png ", "folder/cafe\u0301.png"]
)
def test_a_path_may_be_spelled_as_other_systems_do(name: str, folder: Path) -> None:
    (folder / "folder").mkdir(exist_ok=True)
    save_picture(folder / "folder" / "c.png", 8, 8)
    save_picture(folder / "folder" / "caf\xe9.png", 8, 8)
    read_row({**ASKED, "image": name}, 1, folder).images[0].check()


def test_a_file_of_that_very_name_comes_first(folder: Path) -> None:
    save_picture(folder / "d%20e.png", 8, 8)
    save_picture(folder / "d e.png", 9, 9)
    assert read_row({**ASKED, "image": "d%20e.png"}, 1, folder).images[0].open().size == (8, 8)


@pytest.mark.parametrize("name", ["..\\secret.png", "%2e%2e/secret.png", "..%2Fsecret.png"])
def test_no_spelling_leaves_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    save_picture(tmp_path / "secret.png", 8, 8)
    (tmp_path / "in").mkdir()
    with pytest.raises(RowError, match=r"does not exist|leaves the images folder"):
        read_row({**ASKED, "image": name}, 1, tmp_path / "in").images[0].check()


def test_a_row_may_point_to_the_picture_of_another(folder: Path) -> None:
    """As VLMEvalKit's tables do, for the circular copies of a question."""
    text = base64.b64encode((folder / "a.png").read_bytes()).decode()
    lines = ["index\timage\tquestion\tanswer", f"7\t{text}\tOne?\tIt.", "1000007\t7\tTwo?\tIt."]
    first, second, lost = written(folder, "t.tsv", "\n".join([*lines, "9\t8\tThree?\tIt."]))
    assert first.images[0].open().size == second.images[0].open().size == (8, 8)
    with pytest.raises(RowError, match="image 8 does not exist"):
        lost.images[0].check()


@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "."])
def test_streaming_is_refused_for_what_lies_here(tmp_path: Path, name: str) -> None:
    for path in ("rows.json", "rows.parquet"):
        (tmp_path / path).write_bytes(b"[]")
    with pytest.raises(RequestError, match="on this machine: --streaming is for") as caught:
        read_rows(tmp_path / name, streaming=True)
    assert "leave it out" in caught.value.hint
