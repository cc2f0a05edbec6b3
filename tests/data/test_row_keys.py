"""Keys of rows: pictures wherever they are, answers of several humans, names the user gives."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dcsurgery.data.columns import Columns, parse_columns
from dcsurgery.data.conversations import Row
from dcsurgery.data.layouts import UNDERSTOOD, read_row
from dcsurgery.data.pictures import RowError
from dcsurgery.data.rows import read_rows
from dcsurgery.errors import RequestError
from tests.training.pictures import picture, save_picture

ASKED = {"question": "What?", "answer": "It."}
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It."}]


def png() -> bytes:
    buffer = io.BytesIO()
    picture(8, 8).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("a.png", "b.png", "7.png"):
        save_picture(folder / name, 8, 8)
    return folder


def read(raw: Any, folder: Path, **columns: str) -> Row:
    return read_row(raw, 1, folder, columns=Columns(columns, UNDERSTOOD) if columns else None)


TEXT = base64.b64encode(png()).decode()
HELD: dict[str, Any] = {
    "path": "a.png",
    "list": ["a.png"],
    "written list": "['a.png']",
    "JSON list": '["a.png"]',
    "path and no bytes": {"bytes": None, "path": "a.png"},
    "bytes": png(),
    "object of bytes": {"bytes": png(), "path": None},
    "picture": picture(8, 8),
    "data URI": f"data:image/png;base64,{TEXT}",
    "URI in an object": {"url": f"data:image/png;base64,{TEXT}"},
    "base64": TEXT,
    "base64 with line breaks": "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
}


@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize(
    "key", ["image", "images", "image_path", "img", "image_url", "picture", "Image", "file_name"]
)
def test_a_picture_is_found_under_any_key_in_any_form(how: str, key: str, folder: Path) -> None:
    for rest in (ASKED, {"conversations": TALK}, {"messages": MESSAGES}):
        row = read({key: HELD[how], **rest}, folder)
        (source,) = row.images
        assert source.open().size == (8, 8)
        assert [turn.pictures for turn in row.turns] == [1, 0]


@pytest.mark.parametrize("how", sorted(set(HELD) - {"path and no bytes", "URI in an object"}))
def test_what_looks_like_a_picture_under_a_strange_key_is_named(how: str, folder: Path) -> None:
    for strange in ({"scan": HELD[how]}, {"meta": {"scan": [HELD[how]]}}):
        name = "scan" if "scan" in strange else "meta.scan"
        with pytest.raises(RowError, match=rf"'{name}' looks like one.* --columns image={name}"):
            read({**ASKED, **strange}, folder)
        row = read({**ASKED, "image": "b.png", **strange}, folder)
        assert row.unread == (name,)


@pytest.mark.parametrize(
    "raw", [{"url": "https://x/page"}, {"path": "data/train.json"}, {"file": "notes.txt"}]
)
def test_names_of_other_files_are_no_pictures(raw: Any, folder: Path) -> None:
    assert read({**ASKED, **raw}, folder).images == ()
    assert read({**ASKED, **raw, "img": "a.png"}, folder).images[0].name == "a.png"


def test_words_are_no_pictures(folder: Path) -> None:
    raw = {**ASKED, "note": "see a.png.", "source": "coco", "size": [3, 4], "meta": {"box": [1]}}
    row = read(raw, folder)
    assert (row.images, row.unread) == ((), ())


def test_an_id_is_a_file_where_one_fits(folder: Path) -> None:
    assert read({**ASKED, "image_id": 7}, folder).images[0].name == "7.png"
    with pytest.raises(RowError, match=r"image_id 8 names no file in .*--columns 'image="):
        read({**ASKED, "image_id": 8}, folder)
    with pytest.raises(RowError, match="'id' looks like one"):
        read({**ASKED, "id": "a.png"}, folder)


def test_an_id_that_fits_two_files_is_refused(tmp_path: Path) -> None:
    for year in ("2014", "2017"):
        (tmp_path / year).mkdir()
        save_picture(tmp_path / year / "000000000042.jpg")
    with pytest.raises(RowError, match=r"image_id 42 fits 2014/0+42.jpg, 2017/0+42.jpg"):
        read({**ASKED, "image_id": 42}, tmp_path)


def humans(*said: str) -> list[dict[str, str]]:
    return [{"answer": text, "answer_confidence": "yes"} for text in said]


@pytest.mark.parametrize(
    ("answers", "trained"),
    [
        ({"answers": humans("b", "a", "a")}, "a"),
        ({"answers": humans("b", "a", "a", "b")}, "b"),
        ({"answers": ["No", "yes", "no "]}, "No"),
        ({"answers": {"answer": ["b", "a", "a"], "answer_id": [1, 2, 3]}}, "a"),
        ({"answers": "['b', 'a', 'a']"}, "a"),
        ({"answers": humans("b", "a", "a"), "multiple_choice_answer": "b"}, "b"),
        ({"answers": ["b", "a", "a"], "answer": "b"}, "b"),
        ({"answers": [3, 4, 4]}, "4"),
        ({"label": ["7"]}, "7"),
        ({"answer": "[1, 2]"}, "[1, 2]"),
        ({"answer": {"text": "x"}}, "x"),
        ({"answer": 0}, "0"),
    ],
)
def test_several_humans_train_what_most_say(answers: Any, trained: str, folder: Path) -> None:
    row = read({"image": "a.png", "question": "What?", **answers}, folder)
    assert row.turns[-1].text == trained
    assert trained in row.answers and len(row.answers) == len(row.raw_answers)


def test_answers_keep_what_they_were(folder: Path) -> None:
    row = read({"question": "What?", "answer": 2, "choices": ["a", "b", "c"]}, folder)
    assert (row.answers, row.raw_answers, row.options) == (("2",), (2,), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"options": "['cat', \"dog's\"]"}, ("cat", "dog's")),
        ({"options": '["cat", "dog"]'}, ("cat", "dog")),
        ({"options": "[1, 2]"}, ("1", "2")),
        ({"options": "[]"}, ()),
        ({"options": {"B": "dog", "A": "cat"}}, ("cat", "dog")),
        ({"A": "cat", "B": "dog", "C": None, "D": "nan"}, ("cat", "dog")),
        ({"choice_a": "cat", "choice_b": "dog"}, ("cat", "dog")),
        ({"Choice A": "cat", "Choice B": "dog"}, ("cat", "dog")),
        ({"option_1": "cat", "option_2": "dog"}, ("cat", "dog")),
        ({"option0": "cat", "option1": "dog"}, ("cat", "dog")),
        ({"a": "cat"}, ()),
    ],
)
def test_options_are_found(options: Any, wanted: tuple[str, ...], folder: Path) -> None:
    assert read({**ASKED, **options}, folder).options == wanted


BAD: dict[str, tuple[Any, str]] = {
    "options with a gap": ({**ASKED, "A": "x", "B": None, "C": "z"}, "options a, c have a gap"),
    "options of pictures": ({**ASKED, "options": ["<image 1>", "no"]}, "options show pictures"),
    "a list without commas": ({**ASKED, "options": "['a' 'b']"}, "without commas: .'a' 'b'."),
    "a video": ({"video": "a.mp4", "conversations": TALK}, "it has video"),
    "languages, none English": ({"question": {"de": "Was?", "fr": "Quoi?"}}, "keys de, fr"),
    "an answer that is an object": ({**ASKED, "answer": {"x": 1}}, "an object with the keys x"),
    "a mention of no picture": ({**ASKED, "question": "<image 2>?", "image": "a.png"}, "<image 2>"),
    "one of two mentioned": (
        {**ASKED, "question": "<image 2>?", "images": ["a.png", "b.png"]},
        "shows 1 images, but it has 2",
    ),
    "an index beyond the pictures": (
        {
            "images": ["a.png"],
            "messages": [{"role": "user", "content": [{"type": "image", "index": 1}]}],
        },
        "shows picture 1, but it has 1 images",
    ),
    "a URL in a message": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "https://x/a.png"}}],
                }
            ]
        },
        "is a URL",
    ),
    "LAION's URL": ({"TEXT": "A ball.", "URL": "https://x/a.jpg"}, "is a URL"),
    "LAION's URL without a suffix": (
        {"TEXT": "A ball.", "URL": "https://x/i?id=3"},
        "it is a caption without a picture",
    ),
    "a history of three": ({**ASKED, "history": [["a", "b", "c"]]}, "list of .question, answer."),
    "more questions than answers": (
        {"questions": ["a", "b"], "answers": ["c"]},
        "2 questions and 1 answers",
    ),
    "no role": ({"messages": [{"content": "x"}]}, "no role; its keys are content"),
    "a tool": ({"messages": [{"role": "tool", "content": "x"}]}, "'tool'; known are system, human"),
    "a class without a question": (
        {"image": "a.png", "label": 3},
        "no layout fits its keys image, label; understood are conversations, messages",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_cannot_be_understood_say_why(case: str, folder: Path) -> None:
    raw, reason = BAD[case]
    with pytest.raises(RowError, match=reason):
        read(raw, folder)


def test_a_question_with_an_id_is_no_caption(folder: Path) -> None:
    """LLaVA's own question files: the answers are elsewhere."""
    row = read({"question_id": 1, "image": "a.png", "text": "Is there a dog?"}, folder)
    assert (row.layout, [turn.role for turn in row.turns]) == ("question", ["user"])


def test_columns_come_before_every_layout(folder: Path) -> None:
    raw = {"conversations": TALK, "ask": "Why?", "say": "So.", "image": "a.png", "answers": ["x"]}
    row = read(raw, folder, question="ask", answer="say")
    assert [turn.text for turn in row.turns] == ["Why?", "So."]
    assert row.answers == ("So.",) and row.keys[:2] == ("ask", "say")


@pytest.mark.parametrize(
    ("columns", "raw", "pictures"),
    [
        ({"image": "scan"}, {"scan": "a.png"}, ["a.png"]),
        ({"image": "Scan"}, {"scan": "a.png"}, ["a.png"]),
        ({"image": "meta.scan"}, {"meta": {"scan": "a.png"}}, ["a.png"]),
        ({"images": "left+right"}, {"left": "a.png", "right": "b.png"}, ["a.png", "b.png"]),
        ({"image": "{number}.png"}, {"number": 7}, ["7.png"]),
        ({"image": "x_{number:03}.png"}, {"number": "7"}, ["x_007.png"]),
        ({"image": "{part}/{image}"}, {"part": "train", "image": None}, []),
        ({"image": "second"}, {"image": "a.png", "second": "b.png"}, ["b.png"]),
    ],
)
def test_columns_make_pictures(
    columns: dict[str, str], raw: Any, pictures: list[str], folder: Path
) -> None:
    row = read({**ASKED, **raw}, folder, **columns)
    assert [source.name for source in row.images] == pictures


def test_columns_join_texts_and_options(folder: Path) -> None:
    raw = {"context": "Two balls.", "ask": "Which?", "x": "red", "y": "blue", "answer": "A"}
    row = read(raw, folder, question="context+ask", options="x+y")
    assert (row.turns[0].text, row.options) == ("Two balls.\nWhich?", ("red", "blue"))


@pytest.mark.parametrize(
    ("columns", "reason", "hint"),
    [
        ({"question": "asks"}, "question=asks: the data has no column 'asks'", "ask, say, image"),
        ({"image": "{imag}.png"}, "has no column 'imag'", "ask, say, image"),
        ({"images": "image+other"}, "has no column 'other'", "ask, say, image"),
        ({"image": "{image"}, "no text with names", "image_id"),
        ({"quest": "ask"}, "there is no word 'quest'", "question, answer, image, options"),
    ],
)
def test_wrong_columns_list_the_right_ones(
    columns: dict[str, str], reason: str, hint: str, tmp_path: Path
) -> None:
    rows = [{"ask": "What?", "say": "It."}, {"ask": "Why?", "image": "a.png"}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    with pytest.raises(RequestError, match=reason) as caught:
        read_rows(tmp_path / "d.json", columns=columns)
    assert hint in caught.value.hint


def test_a_column_may_begin_late(tmp_path: Path) -> None:
    rows = [{"question": "What?", "answer": "It."}] * 1500 + [{"ask": "Why?", "answer": "So."}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert read_rows(tmp_path / "d.json", columns={"question": "ask"})[1500].turns[0].text == "Why?"


@pytest.mark.parametrize("raw", [{**ASKED, "answer": "<image>"}, {"text": "USER: <image> Hm?"}])
def test_an_answer_shows_no_picture(raw: Any, folder: Path) -> None:
    with pytest.raises(RowError, match="the assistant shows an image"):
        read({"image": "a.png", **raw}, folder)


def test_columns_of_the_command_line() -> None:
    assert parse_columns(None) == {}
    wanted = {"question": "ask", "image": "{id:03}.png"}
    assert parse_columns("question=ask, image={id:03}.png") == wanted
    for wrong in ("question", "question=", "=ask", "a=b,a=c"):
        with pytest.raises(RequestError, match="WORD=COLUMN"):
            parse_columns(wrong)
