"""What the user wrote around pictures is what the model reads, in every form of prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dcsurgery.data.chat_template import Script
from dcsurgery.data.conversations import Row, Turn, split_text
from dcsurgery.data.layouts import read_row
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import IGNORED, Prompter
from dcsurgery.data.templates import V1_SYSTEM, find_writer
from dcsurgery.demo.checkpoints import embedded, unpack
from dcsurgery.evaluation.runner import question_turns
from dcsurgery.tiny import write_tiny_llava
from tests.tiny.paligemma import write_tiny_paligemma
from tests.training.pictures import ONE, TEXT, answer, source, user

VALUES = [
    "Look at this photo\n<image>\nand name the colour.",
    "<image>\nWhat is it?",
    "What is it?\n<image>",
    "<image>What is it?",
    "Is <image> red?\r\n",
    "  Read:\n\n<image>\n\n  - one\n  - two\n",
    "<image>\n    def f():\n\treturn 1\n",
    "<image>",
    "\n<image>\n",
    "<image>\n<image>\nWhich?",
    "Before:\n<image>\nAfter:\n<image>\n\nWhat changed?",
    "<image> <image>",
    "no picture,\n two lines\n ",
]
SHOW = "<|v|><image><|/v|>"
TURNS = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}SHOW"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
IN_PLACE = TURNS.replace("SHOW", SHOW)
BREAKS = TURNS.replace("SHOW", "<image>\n")
STRINGS = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BARE_ENDS = IN_PLACE.replace("<end>", " ")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_processor(write_tiny_llava(tmp_path_factory.mktemp("texts") / "llava"))


def written(
    processor: Any, turns: tuple[Turn, ...], template: str | None, generate: bool = False
) -> Script:
    processor.chat_template = template
    return find_writer(processor)(turns, generate)


def llava_row(*values: str) -> Row:
    """A row of LLaVA JSON in which the two sides take turns."""
    said = [
        {"from": "human" if at % 2 == 0 else "gpt", "value": value}
        for at, value in enumerate(values)
    ]
    pictures = sum(value.count("<image>") for value in values)
    return read_row({"images": ["a.png"] * pictures, "conversations": said}, 1, Path("."))


def as_llava_trains(value: str) -> str:
    """preprocess_multimodal of haotian-liu/LLaVA, in other words.

    It keeps one token for a row's one picture; here there is one for each.
    """
    pictures = value.count("<image>")
    if pictures == 0:
        return value
    words = "".join(value.split("<image>")).strip()
    return ("<image>\n" * pictures + words).strip()


@pytest.mark.parametrize("value", VALUES)
def test_every_character_of_a_text_is_in_its_parts(value: str) -> None:
    parts = split_text(value)
    assert "".join("<image>" if part is None else part for part in parts) == value
    assert split_text("") == ("",)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("said", ["a ball", "\nTwo lines:\nyes \n"])
def test_v1_is_what_llava_trains_on(value: str, said: str, processor: Any) -> None:
    row = llava_row(value, said, "why?\n", "because")
    text = (
        f"{V1_SYSTEM} USER: {as_llava_trains(value)} ASSISTANT: {said}</s>"
        "USER: why?\n ASSISTANT: because</s>"
    )
    script = find_writer(processor, "v1")(row.turns, False)
    assert script.text == text and script.dropped == ()
    assert [text[slice(*span)] for span in script.answers] == [f" {said}</s>", " because</s>"]


def test_v1_writes_an_empty_turn_as_llava_does(processor: Any) -> None:
    script = find_writer(processor, "v1")((user(""), answer("hello")), False)
    assert script.text == f"{V1_SYSTEM} USER:ASSISTANT: hello</s>"


def test_plain_is_what_llava_trains_on(processor: Any) -> None:
    row = llava_row("Describe it.\n<image>", " A ball,\nred.\n")
    script = find_writer(processor, "plain")(row.turns, False)
    assert script.text == "<image> A ball,\nred.\n\n" and script.dropped == ("user turn",)
    assert script.text[slice(*script.answers[0])] == " A ball,\nred.\n\n"


@pytest.mark.parametrize("value", VALUES)
def test_a_template_gets_pictures_and_words_where_they_are(value: str, processor: Any) -> None:
    row = llava_row(value, "\n  yes.\n")
    script = written(processor, row.turns, IN_PLACE)
    shown = value.replace("<image>", SHOW)
    assert script.text == f"[user]{shown}[assistant]\n  yes.\n<end>" and not script.dropped


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<image>\nWhat is it?", "<image>\nWhat is it?"),
        ("<image>\n\n  What is it?", "<image>\n\n  What is it?"),
        ("<image>\r\nWhat is it?", "<image>\nWhat is it?"),
        ("<image>\n<image>\nWhich?", "<image>\n<image>\nWhich?"),
        ("<image>", "<image>\n"),
        ("Look\n<image>", "Look\n<image>\n"),
    ],
)
def test_a_line_break_that_the_template_writes_is_not_written_twice(
    value: str, shown: str, processor: Any
) -> None:
    """llava-hf's templates put one behind every picture, and so does LLaVA JSON."""
    script = written(processor, llava_row(value, "yes").turns, BREAKS)
    assert script.text == f"[user]{shown}[assistant]yes<end>"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<image>\nWhat is it?", "<image>\nWhat is it?"),
        ("<image>What is it?", "<image>\nWhat is it?"),
        ("<image><image>Which?", "<image>\n<image>\nWhich?"),
        ("Look\n<image>\nand say.", "Look\n<image>\nand say."),
        ("Is <image> red?", "Is <image> red?"),
    ],
)
def test_a_text_models_template_gets_them_in_place(value: str, shown: str, processor: Any) -> None:
    script = written(processor, llava_row(value, "yes").turns, STRINGS)
    assert script.text == f"[user]{shown}<end>[assistant]yes<end>"


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("form", ["v1", IN_PLACE, BREAKS, STRINGS, BARE_ENDS])
def test_what_is_asked_is_what_was_trained(value: str, form: str, processor: Any) -> None:
    """Also behind earlier answers, which training may end where the template does not."""
    row = llava_row(value, "a ball", "why?\n", "because")
    if form == "v1":
        write = find_writer(processor, "v1")
    else:
        processor.chat_template = form
        write = find_writer(processor)
    trained = write(row.turns, False).text
    asked = write(tuple(question_turns(row)), True).text
    assert trained.startswith(asked) and trained[len(asked) :].strip().startswith("because")


SYSTEM = Turn("system", ("Be brief.",))


@pytest.mark.parametrize(
    ("template", "turns", "dropped"),
    [
        (IN_PLACE, (SYSTEM, *ONE.turns[:1]), ()),
        (
            "{% set messages = messages[1:] %}" + IN_PLACE,
            (SYSTEM, *ONE.turns[:1]),
            ("system turn",),
        ),
        # "hi" stands in the other turn as well.
        (
            "{% set messages = messages[-1:] %}" + IN_PLACE,
            (user("hi"), answer("hi"), user("hi")),
            ("user turn", "assistant turn"),
        ),
        (IN_PLACE.replace("c['text']", "c['text'] if loop.first"), TEXT.turns[:1], ()),
        (
            IN_PLACE.replace("c['text']", "c['text'] if loop.first"),
            (user("one", "two"),),
            ("user turn",),
        ),
        # Depends on the words: thoughts of earlier answers, as Qwen3's template treats them.
        (
            IN_PLACE.replace("c['text']", "c['text'].split('</think>')[-1]"),
            (user("hi"), answer("<think>hm</think>yes"), user("why?")),
            ("assistant turn",),
        ),
        (IN_PLACE.replace("c['text']", "c['text'] | trim"), (user("  a\n b "),), ()),
    ],
)  # fmt: skip
def test_what_a_template_drops_is_said(
    template: str, turns: tuple[Turn, ...], dropped: tuple[str, ...], processor: Any
) -> None:
    assert written(processor, turns, template, generate=True).dropped == dropped


def test_rows_say_what_of_them_is_not_trained(processor: Any, tmp_path: Path) -> None:
    prompts = Prompter(processor, version="v1")
    row = Row("1", (answer("Welcome."), *ONE.turns, user("and?")), ONE.images)
    assert prompts.encode(row).dropped == (
        "answer before the first question", "question after the last answer",
    )  # fmt: skip
    assert prompts.encode(ONE).dropped == ()


# PaliGemmaProcessor turns tensors into arrays the way numpy 2 warns of.
def test_earlier_answers_that_a_model_sees_whole_carry_no_loss(tmp_path: Path) -> None:
    prompts = Prompter(load_processor(write_tiny_paligemma(tmp_path / "m")))
    assert prompts.encode(ONE).dropped == ("loss of earlier answers",)
    short = Row("1", (user(None, "hi"), answer("yes")), (source(),))
    assert prompts.encode(short).dropped == ()


def test_an_end_token_that_the_tokenizer_adds_is_not_behind_the_question(tmp_path: Path) -> None:
    """As tokenizers with add_eos_token do; a model would answer nothing more."""
    from tokenizers.processors import TemplateProcessing

    prompts = Prompter(load_processor(write_tiny_llava(tmp_path / "llava")))
    plain = prompts.prompt(ONE.turns[:1], [ONE.images[0].open()])
    trained = prompts.encode(ONE)
    tokenizer = prompts.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    asked = prompts.prompt(ONE.turns[:1], [ONE.images[0].open()])
    assert asked["input_ids"].tolist() == plain["input_ids"].tolist()
    assert asked["attention_mask"].shape == plain["attention_mask"].shape
    again = prompts.encode(ONE)
    kept = [
        run.values["labels"][run.values["labels"] != IGNORED].tolist() for run in (trained, again)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("version", [None, "v1"])
@pytest.mark.parametrize("place", ["question", "answer"])
def test_a_text_that_the_tokenizer_takes_for_a_token_is_counted(
    place: str, version: Any, tmp_path: Path
) -> None:
    prompter = Prompter(load_processor(write_tiny_llava(tmp_path / "m")), version=version)
    texts = {"question": "What?", "answer": "It."}
    plain = Row("1", (user(None, texts["question"]), answer(texts["answer"])))
    texts[place] += " </s> More."
    row = Row("1", (user(None, texts["question"]), answer(texts["answer"])))
    assert prompter.dropped(plain.turns, generate=False) == ()
    assert prompter.dropped(row.turns, generate=False) == ("text of a special token",)


def test_words_that_a_tokenizer_does_not_know_are_counted(tmp_path: Path) -> None:
    prompter = Prompter(load_processor(unpack(embedded()[0], tmp_path / "m")))
    known = (user(None, "what is the background ?"), answer("red"))
    assert prompter.dropped(known, generate=False) == ()
    strange = (user(None, "what is the background ?"), answer("mauve"))
    assert prompter.dropped(strange, generate=False) == ("word that the tokenizer does not know",)
