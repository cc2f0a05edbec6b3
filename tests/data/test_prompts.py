from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dcsurgery
from dcsurgery.data.conversations import Row, Turn, ask
from dcsurgery.data.pictures import RowError
from dcsurgery.data.processor import load_processor
from dcsurgery.data.prompts import IGNORED, Encoded, Prompter, pad_square
from dcsurgery.errors import RequestError
from dcsurgery.tiny import write_tiny_llava
from dcsurgery.tiny.llava_next import write_tiny_llava_next
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava, write_tower
from dcsurgery.tiny.tokenizer import write_tokenizer
from tests.tiny.idefics3 import write_tiny_idefics3, write_tiny_smolvlm
from tests.tiny.internvl import write_tiny_internvl
from tests.tiny.mistral3 import write_tiny_mistral3
from tests.tiny.mllama import write_tiny_mllama
from tests.tiny.molmo2 import write_tiny_molmo2
from tests.tiny.paligemma import write_tiny_paligemma
from tests.tiny.qwen2_vl import write_tiny_qwen2_vl
from tests.training.pictures import ONE, TEXT, TWO, answer, picture, source, user

# Templates as published ones are built: turns that end, turns that do not, one that rewrites.
PARTS = (
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}" + PARTS + "<|im_end|>{% endgeneration %}"
    "{% else %}" + PARTS + "<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|head|>{{ m['role'] }}<|end|>\n\n"
    "{% if m['role'] == 'assistant' %}{% generation %}" + PARTS + "<|eot|>{% endgeneration %}"
    "{% else %}" + PARTS + "<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|end|>\n\n{% endif %}"
)
# Opens a thought where a turn is generated, which finished turns do not have.
THINKING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# Writes the last turn otherwise than the others.
LAST = CHATML.replace(
    "{% generation %}", "{% if loop.last %}<think></think>{% endif %}{% generation %}"
)
VICUNA = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava": write_tiny_llava,
    "llava_next": write_tiny_llava_next,
    "idefics3": write_tiny_idefics3,
    "smolvlm": write_tiny_smolvlm,
    "internvl": write_tiny_internvl,
    "mistral3": write_tiny_mistral3,
    "mllama": write_tiny_mllama,
    "qwen2_vl": write_tiny_qwen2_vl,
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llava(tmp_path_factory.mktemp("prompts") / "llava")


def prompter(folder: Path, template: str | None = None, **options: Any) -> Prompter:
    processor = load_processor(folder)
    if template is not None:
        processor.chat_template = template
    return Prompter(processor, **options)


def supervised(encoded: Encoded, prompts: Prompter) -> list[str]:
    """Every run of labels, as text; each must be the very tokens of the input."""
    ids, labels = encoded.values["input_ids"], encoded.values["labels"]
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])
    runs: list[list[int]] = []
    before = IGNORED
    for label in labels.tolist():
        if label != IGNORED:
            runs = [*runs, []] if before == IGNORED else runs
            runs[-1].append(label)
        before = label
    return [prompts.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
@pytest.mark.parametrize("row", [ONE, TWO, TEXT], ids=lambda row: row.id)
def test_labels_are_what_the_generation_blocks_mark(template: str, row: Row, llava: Path) -> None:
    """Oracle: transformers' own mask of what `{% generation %}` encloses."""
    prompts = prompter(llava, template)
    pictures = iter(row.images)
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "image", "image": next(pictures).open()}
                if part is None
                else {"type": "text", "text": part}
                for part in turn.parts
            ],
        }
        for turn in row.turns
    ]
    wanted = prompts.processor.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    found = prompts.encode(row).values
    assert found["input_ids"].tolist() == list(wanted["input_ids"][0])
    assert (found["labels"] != IGNORED).int().tolist() == list(wanted["assistant_masks"][0])


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot|>"), (THINKING, "<|im_end|>"), (LAST, "<|im_end|>")],
    ids=["chatml", "llama3", "thinking", "last"],
)
def test_answers_carry_loss_with_the_templates_own_end(
    template: str, end: str, llava: Path
) -> None:
    prompts = prompter(llava, template)
    found = supervised(prompts.encode(ONE), prompts)
    assert found == [f"a red ball{end}", f"because{end}"]


def test_answers_that_nothing_ends_get_the_end_token_as_llava_trains_it(llava: Path) -> None:
    prompts = prompter(llava, VICUNA)
    encoded = prompts.encode(ONE)
    assert supervised(encoded, prompts) == [" a red ball</s>", " because</s>"]
    text = prompts.tokenizer.decode(encoded.values["input_ids"]).replace("<image>" * 16, "<image>")
    assert text == (
        "USER: <image>\nwhat is it? ASSISTANT: a red ball</s>USER: why? ASSISTANT: because</s>"
    )


@pytest.mark.parametrize("template", [LLAMA3, VICUNA], ids=["written", "added"])
def test_the_text_begins_once(template: str, llava: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    prompts = prompter(llava, template)
    begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    prompts.tokenizer.backend_tokenizer.post_processor = begin
    encoded = prompts.encode(ONE)
    for ids in (encoded.values["input_ids"], prompts.prompt([ask("hi")])["input_ids"][0]):
        assert ids[0] == 1 and int((ids == 1).sum()) == 1
    assert [text.strip() for text in supervised(encoded, prompts)] in (
        ["a red ball<|eot|>", "because<|eot|>"],
        ["a red ball</s>", "because</s>"],
    )


def test_v1_is_llavas_prompt_also_without_a_chat_template(llava: Path, tmp_path: Path) -> None:
    for prompts in (prompter(llava, version="v1"), prompter(without_template(tmp_path))):
        encoded = prompts.encode(ONE)
        assert supervised(encoded, prompts) == [" a red ball</s>", " because</s>"]
        text = prompts.tokenizer.decode(encoded.values["input_ids"])
        assert text.replace("<image>" * 16, "<image>") == (
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
            "what is it? ASSISTANT: a red ball</s>USER: why? ASSISTANT: because</s>"
        )
        asked = prompts.prompt([ask("hi")])["input_ids"][0]
        assert prompts.tokenizer.decode(asked).endswith(" USER: hi ASSISTANT:")


def without_template(folder: Path) -> Path:
    write_tiny_llava(folder / "bare")
    (folder / "bare" / "chat_template.json").unlink()
    config = json.loads((folder / "bare" / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "bare" / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "bare"


def test_plain_is_picture_and_caption_alone(llava: Path) -> None:
    prompts = prompter(llava, version="plain")
    row = Row("1", (user(None, "Describe it."), answer("a ball")), (source(),))
    encoded = prompts.encode(row)
    assert supervised(encoded, prompts) == ["a ball\n"]
    assert prompts.tokenizer.decode(encoded.values["input_ids"]) == "<image>" * 16 + "a ball\n"
    for bad, why in ((ONE, "2 answers"), (TEXT, "no image")):
        with pytest.raises(RowError, match=why):
            prompts.encode(bad)


@pytest.mark.parametrize("family", WRITERS)
def test_every_way_of_writing_pictures_out_keeps_the_answers(family: str, tmp_path: Path) -> None:
    prompts = prompter(WRITERS[family](tmp_path / family))
    assert supervised(prompts.encode(ONE), prompts) == [" a red ball</s>", " because</s>"]
    assert supervised(prompts.encode(TWO), prompts) == [" the left</s>"]
    assert supervised(prompts.encode(TEXT), prompts) == [" hello</s>"]
    asked = prompts.prompt(ONE.turns[:1], [ONE.images[0].open()])
    size = asked["input_ids"].shape[1]
    assert torch.equal(asked["input_ids"][0], prompts.encode(ONE).values["input_ids"][:size])


# PaliGemmaProcessor turns tensors into arrays the way numpy 2 warns of.
def test_paligemma_learns_its_last_answer_as_suffix(tmp_path: Path) -> None:
    prompts = prompter(write_tiny_paligemma(tmp_path / "m"))
    encoded = prompts.encode(ONE)
    assert supervised(encoded, prompts) == ["because</s>"]
    text = prompts.tokenizer.decode(encoded.values["input_ids"])
    assert text == "<image>" * 16 + "<s>what is it?\na red ball\nwhy?\nbecause</s>"
    kinds, labels = encoded.values["token_type_ids"], encoded.values["labels"]
    assert torch.equal(kinds == 1, labels != IGNORED)
    asked = prompts.prompt(ONE.turns[:1], [ONE.images[0].open()])
    assert prompts.tokenizer.decode(asked["input_ids"][0]).endswith("<s>what is it?\n")
    with pytest.raises(RowError, match="images"):
        prompts.encode(TEXT)


def test_a_cut_takes_the_end_of_the_last_answer_or_whole_turns(llava: Path) -> None:
    prompts = prompter(llava, CHATML)
    whole = prompts.encode(ONE)
    (_, first_end), (second, _) = whole.spans
    cut = prompts.encode(ONE, second + 2)
    assert cut.truncated and len(cut) == second + 2
    assert supervised(cut, prompts) == ["a red ball<|im_end|>", "be"]
    dropped = prompts.encode(ONE, second)
    assert dropped.truncated and len(dropped) == first_end
    assert supervised(dropped, prompts) == ["a red ball<|im_end|>"]
    assert len(dropped.values["attention_mask"]) == first_end
    same = prompts.encode(ONE, len(whole))
    assert not same.truncated and len(same) == len(whole)


def test_a_cut_never_takes_pictures(llava: Path) -> None:
    prompts = prompter(llava, CHATML)
    turns = (*TEXT.turns, user(None, "what?"), answer("a ball"))
    row = Row("late", turns, (source(),))
    assert len(prompts.encode(row, 1000).spans) == 2
    with pytest.raises(RowError, match="would cut an image"):
        prompts.encode(row, len(prompts.encode(row)) - 20)
    with pytest.raises(RowError, match="no answer starts in the first 8"):
        prompts.encode(ONE, 8)


@pytest.mark.parametrize("place", ["question", "answer"])
def test_text_that_names_the_image_token_is_refused(place: str, llava: Path) -> None:
    words = {"question": "hi", "answer": "yo"} | {place: "an <image> here"}
    row = Row("1", (user(None, words["question"]), answer(words["answer"])), (source(),))
    with pytest.raises(RowError, match="2 times '<image>' for 1 images"):
        prompter(llava).encode(row)


def test_what_a_template_refuses_is_a_reason_not_a_traceback(llava: Path) -> None:
    template = "{{ raise_exception('no system please') }}"
    guarded = "{% if messages[0]['role'] == 'system' %}" + template + "{% endif %}" + CHATML
    row = Row("1", (Turn("system", ("Be brief.",)), *TEXT.turns))
    with pytest.raises(RowError, match="refuses it: no system please"):
        prompter(llava, guarded).encode(row)


def test_a_text_models_template_gets_the_image_token_as_text(llava: Path) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    prompts = prompter(llava, template)
    encoded = prompts.encode(ONE)
    assert supervised(encoded, prompts) == ["a red ball</s>", "because</s>"]
    text = prompts.tokenizer.decode(encoded.values["input_ids"])
    assert text.startswith("user: " + "<image>" * 16 + "\nwhat is it?</s>assistant: a red ball</s>")


def test_padding_keeps_the_picture_in_the_middle_of_its_square(llava: Path) -> None:
    processor = load_processor(llava)
    processor.image_processor.image_mean = [0.0, 1.0, 0.5]
    square = pad_square(picture(64, 32), processor)
    assert square.size == (64, 64)
    assert square.getpixel((3, 2)) == (0, 255, 127)
    assert square.crop((0, 16, 64, 48)).tobytes() == picture(64, 32).tobytes()
    wide, padded = (
        prompter(llava, aspect=aspect).encode(ONE).values["pixel_values"]
        for aspect in ("processor", "pad")
    )
    assert wide.shape == padded.shape and not torch.equal(wide, padded)


def test_a_deltas_processor_is_its_bases_or_its_own(llava: Path, tmp_path: Path) -> None:
    dcsurgery.convert(llava, tmp_path / "dci", form="delta")
    dcsurgery.convert(llava, tmp_path / "sti", form="delta", connector="sti")
    lengths = [len(prompter(folder).encode(ONE)) for folder in (llava, tmp_path / "dci")]
    assert lengths[0] == lengths[1]
    added = dcsurgery.read_plan(tmp_path / "sti").image_tokens - 16
    assert added > 0 and len(prompter(tmp_path / "sti").encode(ONE)) == lengths[0] + added


def test_an_original_and_its_delta_have_the_processor_they_mean(tmp_path: Path) -> None:
    sizes = OriginalSizes(depth=3)
    tower = write_tower(tmp_path / "clip-tower", sizes)
    original = write_original_llava(tmp_path / "llava", sizes, str(tower))
    write_tokenizer(original, ())
    dcsurgery.convert(original, tmp_path / "delta", form="delta", groups=1)
    for folder in (original, tmp_path / "delta"):
        prompts = prompter(folder)
        encoded = prompts.encode(ONE)
        assert supervised(encoded, prompts) == [" a red ball</s>", " because</s>"]
        images = encoded.values["input_ids"] == prompts.processor.image_token_id
        assert int(images.sum()) == (sizes.image // sizes.patch) ** 2


def test_repositories_with_code_of_their_own_are_not_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RequestError, match="no processor that works here"):
        load_processor(write_tiny_molmo2(tmp_path / "m"))
    assert "[y/N]" not in capsys.readouterr().out
