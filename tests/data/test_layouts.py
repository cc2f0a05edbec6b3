"""Every layout of docs/data.md: the rows are read out of the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from dcsurgery.data.conversations import Row
from dcsurgery.data.rows import Rows, read_rows
from tests.training.pictures import save_picture

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SECTION = re.compile(r"^### (.+?)\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(jsonl?|csv|tsv)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = {
    name: blocks
    for name, text in SECTION.findall(PAGE.read_text(encoding="utf-8") + "\n## end")
    if (blocks := BLOCK.findall(text))
}


class Read(NamedTuple):
    layout: str
    said: str
    pictures: tuple[str, ...] = ("a.jpg",)
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] | None = None


IN_ROW = ("in the row",)
EXPECTED = {
    "LLaVA": Read("conversations", "user: <image>What is it? | assistant: A ball."),
    "ShareGPT": Read(
        "conversations", "system: Be brief. | user: <image>What is it? | assistant: A ball."
    ),
    "ShareGPT pairs": Read(
        "conversations",
        "user: <image>What is it? | assistant: A ball. | user: Why? | assistant: It is round.",
    ),
    "Numbered pictures": Read(
        "conversations", "user: <image> after <image>? | assistant: Yes.", ("b.jpg", "a.jpg")
    ),
    "Pictures in the text": Read(
        "question and answer", "user: Picture 1: <image>What is it? | assistant: A ball."
    ),
    "OpenAI messages": Read(
        "messages", "user: <image>What is it? | assistant: A dot.", IN_ROW
    ),
    "TRL messages": Read(
        "messages",
        "user: <image><image>Which is first? | assistant: The second.",
        ("b.jpg", "a.jpg"),
    ),
    "TRL prompt and completion": Read(
        "prompt and completion messages", "user: <image>What is it? | assistant: A ball."
    ),
    "Prompt and completion": Read(
        "question and answer", "user: <image>What is it? | assistant: A ball."
    ),
    "ms-swift messages": Read(
        "messages", "user: <image><image>Same? | assistant: No.", ("a.jpg", "b.jpg")
    ),
    "ms-swift query and response": Read(
        "question with history",
        "user: <image>What is it? | assistant: A ball. | user: Why? | assistant: It is round.",
    ),
    "Alpaca": Read(
        "question and answer",
        "user: <image>Name it in this language.\nFrench | assistant: Une balle.",
    ),
    "The Cauldron": Read(
        "texts",
        "user: <image>What is it? | assistant: A ball. | user: Why? | assistant: It is round.",
    ),
    "Question and answer": Read(
        "question and answer", "user: <image>What is it? | assistant: a ball"
    ),
    "POPE": Read(
        "question and answer", "user: <image>Is there a ball in the image? | assistant: yes"
    ),
    "VQA v2": Read(
        "question and answer",
        "user: <image>What is it? | assistant: ball",
        ("val2014/COCO_val2014_000000000042.jpg",),
        answers=("toy", "ball", "ball"),
    ),
    "GQA": Read(
        "question and answer", "user: <image>Is it round? | assistant: yes", ("n161313.jpg",)
    ),
    "TextVQA": Read(
        "question and answer",
        "user: <image>What does it say? | assistant: nokia",
        ("0054c91397f2fe05.jpg",),
        answers=("nokia", "nokia", "toshiba"),
    ),
    "DocVQA": Read(
        "question and answer",
        "user: <image>Which year? | assistant: 1999",
        answers=("1999", "in 1999"),
    ),
    "ChartQA": Read("question and answer", "user: <image>How many bars? | assistant: 3"),
    "ScienceQA": Read(
        "question and answer",
        "user: <image>Two balls.\nWhich is bigger? | assistant: 1",
        options=("the left", "the right"),
    ),
    "A-OKVQA": Read(
        "question and answer",
        "user: <image>What is it? | assistant: 0",
        options=("ball", "cube"),
    ),
    "MMBench": Read(
        "question and answer",
        "user: <image>What is it? | assistant: B",
        IN_ROW,
        options=("a ball", "a dot", 'a "thing"'),
    ),
    "SEED-Bench": Read(
        "question and answer",
        "user: <image>What is it? | assistant: A",
        ("1454426_2591111986",),
        options=("a ball", "a dot", "a cube", "a cat"),
    ),
    "MMMU": Read(
        "question and answer",
        "user: <image> or <image>? | assistant: B",
        ("b.jpg", "a.jpg"),
        options=("the first", "the second"),
    ),
    "MathVista": Read(
        "question and answer", "user: <image>How much is x? | assistant: 14", IN_ROW
    ),
    "Several questions": Read(
        "questions",
        "user: <image>Who wrote it? | assistant: A. Author | user: Which year? | assistant: 1999",
    ),
    "Captions": Read(
        "caption",
        "user: <image>Describe the image briefly. | assistant: A red ball.",
        answers=("A red ball.", "A ball on grass."),
    ),
    "COCO captions": Read(
        "caption", "user: <image>Describe the image briefly. | assistant: A red ball."
    ),
    "Image folder": Read(
        "caption", "user: <image>Describe the image briefly. | assistant: A red ball, on grass."
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "val2014").mkdir()
    for name in ("a.jpg", "b.jpg", "n161313.jpg", "0054c91397f2fe05.jpg"):
        save_picture(folder / name)
    save_picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    save_picture(folder / "seed.png").rename(folder / "1454426_2591111986")
    return folder


def written(row: Row) -> str:
    return " | ".join(f"{turn.role}: {turn.written}" for turn in row.turns).replace(
        "<image>\n", "<image>"
    )


def opened(blocks: list[tuple[str, str]], tmp_path: Path, images: Path) -> Rows:
    files = []
    for number, (kind, text) in enumerate(blocks):
        files.append(tmp_path / f"{number}.{kind}")
        files[-1].write_text(text, encoding="utf-8")
    return read_rows(",".join(map(str, files)), images=images)


def test_the_page_and_the_test_know_the_same_layouts() -> None:
    assert SHOWN.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_of_each_layout_is_read_as_the_page_says(
    name: str, folder: Path, tmp_path: Path
) -> None:
    (row,) = opened(SHOWN[name], tmp_path, folder)
    wanted = EXPECTED[name]
    assert isinstance(row, Row), row
    assert written(row) == wanted.said
    assert row.layout == wanted.layout
    assert tuple(source.name for source in row.images) == wanted.pictures
    assert row.options == wanted.options
    assert row.answers == (wanted.answers or (wanted.said.rpartition("assistant: ")[2],))
    for source in row.images:
        source.check()
