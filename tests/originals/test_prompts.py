"""Originals keep the prompts they were trained with: the references' conversations as oracle."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import dcsurgery
from dcsurgery.data.processor import load_processor
from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.modeling.chat_templates import CONVERSATIONS, chat_template
from dcsurgery.surgery.plan_file import read_plan
from dcsurgery.tiny.mini_gemini import mini_gemini_config
from dcsurgery.tiny.original_llava import OriginalSizes, write_original_llava
from dcsurgery.tiny.original_mini_gemini import write_original_mini_gemini, write_towers
from dcsurgery.tiny.tokenizer import write_tokenizer
from tests.originals.conversations import REFERENCE, Talk

pytestmark = pytest.mark.slow

# What the tokenizers of the language models bring with them.
HERMES = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclass(frozen=True)
class Published:
    """What a published original says about its prompts, and the conversation it was trained with.

    `ends` names the token that must end generation.
    """

    wanted: str
    text: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    own: str | None = None
    ends: str = "</s>"
    connector: str | None = None


def named(place: str, **more: Any) -> dict[str, Any]:
    return {"_name_or_path": place, **more}


YI = Published("chatml_direct", config=named("./checkpoints/hermes-2-yi-34b"), tokens=CHATML)
YI = replace(YI, own=HERMES, ends="<|im_end|>")
META = Published("llama_3", tokens=HEADERS, own=LLAMA_3, ends="<|eot_id|>")
INSTRUCT = "mistralai/Mistral-7B-Instruct-v0.2"
LLAVA: dict[str, Published] = {
    "llava-v1.5-7b": Published("v1", config=named("llava-v1.5-7b")),
    "llava-v1.5-13b": Published("v1", config=named("lmsys/vicuna-13b-v1.5")),
    "llava-v1.6-vicuna-7b": Published("v1", config=named("./checkpoints/vicuna-7b-v1-5")),
    "llava-v1.6-vicuna-13b": Published("v1"),
    "llava-v1.6-mistral-7b": Published("mistral_instruct", "mistral", named(INSTRUCT), own=MISTRAL),
    "llava-v1.6-34b": YI,
    "BakLLaVA-1": Published("v1", "mistral", named("mistralai/Mistral-7B-v0.1")),
    "llama3-llava-next-8b": replace(META, wanted="llava_llama_3"),
    "llava-next-qwen": Published("qwen_1_5", "qwen2", tokens=CHATML, ends="<|im_end|>"),
    "DenseConnector-v1.5-7B": Published("v1", connector="dci"),
    "DenseConnector-v1.5-13B": Published("v1", connector="sci"),
    "DenseConnector-v1.5-8B": replace(META, connector="dci"),
}
MGM: dict[str, Published] = {
    "MGM-7B": Published("v1"),
    "MGM-13B-HD": Published("v1", config=named("model_zoo/LLM/vicuna/13B-V1.5")),
    "MGM-2B": Published("gemma", "gemma", ends="<eos>", tokens=("<eos>",)),
    "MGM-8B": META,
    "MGM-8B-HD": replace(META, own=None),
    "MGM-34B": YI,
    "MGM-34B-HD": replace(YI, own=None, tokens=(), ends="</s>"),
    "MGM-8x7B": Published("mgm_mistral_instruct", "mixtral", own=MISTRAL),
}
TALKS: dict[str, tuple[Talk, str | None]] = {
    "a question": ([("How many?", None)], None),
    "two rounds": ([("How many?", "Two."), ("And now?", None)], None),
    "an answered one": ([("How many?", "Two."), ("And now?", "Three.")], None),
    "a system": ([("How many?", "Two."), ("And now?", None)], "Be brief."),
}


def messages(talk: Talk, system: str | None, *, listed: bool, at: int) -> list[dict[str, Any]]:
    """A talk as messages, a picture in its first question, before its words or (`at` 1) after."""

    def said(role: str, words: str, *parts: str) -> dict[str, Any]:
        content: list[dict[str, str]] = [{"type": "text", "text": words}]
        content[at:at] = [{"type": part} for part in parts]
        plain = "".join(f"<{part}>\n" for part in parts) + words
        return {"role": role, "content": content if listed else plain}

    found = [] if system is None else [said("system", system)]
    for number, (question, answer) in enumerate(talk):
        found.append(said("user", question, *(["image"] if number == 0 else [])))
        found += [] if answer is None else [said("assistant", answer)]
    return found


def write_files(folder: Path, case: Published) -> None:
    write_tokenizer(folder, case.tokens)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if "<|begin_of_text|>" in case.tokens:
        config["bos_token"] = "<|begin_of_text|>"
    if case.own is not None:
        config["chat_template"] = case.own
    path.write_text(json.dumps(config))


def llava(folder: Path, case: Published) -> Path:
    sizes = OriginalSizes(depth=24)
    write_original_llava(
        folder, sizes, "openai/clip-vit-large-patch14-336", text=case.text, config=case.config,
        connector=case.connector,
    )  # fmt: skip
    write_files(folder, case)
    return folder


def check_prompts(processor: Any, wanted: str) -> None:
    """Compare what a processor writes with the reference, message by message form."""
    for talk, system in TALKS.values():
        shown = [(f"<image>\n{talk[0][0]}", talk[0][1]), *talk[1:]]
        expected = REFERENCE[wanted](shown, system)
        asked = talk[-1][1] is None
        for listed, at in ((True, 0), (True, 1), (False, 0)):
            found = processor.apply_chat_template(
                messages(talk, system, listed=listed, at=at), add_generation_prompt=asked
            )
            assert found == expected


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_towers(tmp_path_factory.mktemp("towers"), mini_gemini_config())


@pytest.fixture(autouse=True)
def tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower in the checkpoint is a small one: its config comes from a folder beside it."""
    from dcsurgery.tiny.original_llava import write_tower

    monkeypatch.chdir(tmp_path)
    write_tower(tmp_path / "openai" / "clip-vit-large-patch14-336", OriginalSizes())


@pytest.mark.parametrize("name", LLAVA)
def test_published_llavas_keep_their_conversation(name: str, tmp_path: Path) -> None:
    check(llava(tmp_path / name, LLAVA[name]), LLAVA[name], tmp_path)


@pytest.mark.parametrize("name", MGM)
def test_published_mini_geminis_keep_their_conversation(
    name: str, towers: Path, tmp_path: Path
) -> None:
    case = MGM[name]
    base = write_original_mini_gemini(
        tmp_path / name,
        case.text,
        towers=towers,
        stated=case.config,  # type: ignore[arg-type]
    )
    write_files(base, case)
    check(base, case, tmp_path)


def check(base: Path, case: Published, tmp_path: Path) -> None:
    plan = dcsurgery.convert(base, tmp_path / "out", form="delta").plan
    assert plan.base.template is not None and plan.base.template.name == case.wanted
    (note,) = [note for note in plan.notes if "prompts follow" in note]
    assert f"conversation {case.wanted}: " in note
    for folder in (base, tmp_path / "out"):
        processor = load_processor(folder)
        check_prompts(processor, case.wanted)
        ends = dcsurgery.load(folder).generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        assert processor.tokenizer.convert_tokens_to_ids(case.ends) in ends and 2 in ends
    report = dcsurgery.verify(tmp_path / "out")
    assert report.passed


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_conversation_can_be_asked_for(name: str, tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("v1", tokens=HEADERS))
    check_prompts(load_processor(base, template=name), name)
    plan = dcsurgery.convert(base, tmp_path / "out", form="stock", template=name).plan
    assert "as asked" in "\n".join(plan.notes)
    check_prompts(load_processor(tmp_path / "out"), name)
    assert dcsurgery.verify(tmp_path / "out").passed


def test_nothing_that_tells_is_said(tmp_path: Path) -> None:
    base = llava(tmp_path / "my-model", Published("v1"))
    original = dcsurgery.inspect(base).original
    assert original is not None and original.template == "v1"
    assert any("--template NAME or FILE" in note for note in original.notes)


PIRATE = HERMES.replace(
    "{% for message", "<|im_start|>system\nYou are a pirate.<|im_end|>\n{% for message"
)
PICTURES = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}"
)


def test_a_template_of_its_own_stays_and_gets_pictures(tmp_path: Path) -> None:
    """Not a published language model's: somebody wrote it for this model."""
    base = llava(tmp_path / "base", Published("own", tokens=CHATML, own=PIRATE))
    talk = messages(TALKS["two rounds"][0], None, listed=True, at=0)
    wanted = (
        "<|im_start|>system\nYou are a pirate.<|im_end|>\n<|im_start|>user\n<image>\nHow many?"
        "<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    processor = load_processor(base)
    assert processor.apply_chat_template(talk, add_generation_prompt=True) == wanted
    ends = dcsurgery.load(base).generation_config.eos_token_id
    assert ends == [2, processor.tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize(
    "place", ["tokenizer_config.json", "list", "chat_template.json", "chat_template.jinja"]
)
def test_a_template_that_knows_pictures_is_kept_wherever_it_is(place: str, tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("own"))
    if place == "chat_template.jinja":
        (base / place).write_text(PICTURES)
    elif place == "chat_template.json":
        (base / place).write_text(json.dumps({"chat_template": PICTURES}))
    else:
        path = base / "tokenizer_config.json"
        several = [{"name": "tools", "template": "x"}, {"name": "default", "template": PICTURES}]
        found: Any = PICTURES if place == "tokenizer_config.json" else several
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": found}))
    dcsurgery.convert(base, tmp_path / "out")
    talk = messages([("Q", "A")], None, listed=True, at=0)
    for folder in (base, tmp_path / "out"):
        assert load_processor(folder).apply_chat_template(talk) == "[user]<image>Q[assistant]A"
    asked = load_processor(base, template="v1")
    check_prompts(asked, "v1")


def test_own_asks_for_the_tokenizers_template(tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("own", "mistral", own=MISTRAL))
    talk = messages([("Q", "A"), ("R", None)], None, listed=True, at=0)
    found = load_processor(base, template="own").apply_chat_template(talk)
    assert found == "<s>[INST] <image>\nQ [/INST]A</s>[INST] R [/INST]"
    bare = llava(tmp_path / "bare", Published("own"))
    with pytest.raises(RequestError, match="has no chat template of its own"):
        dcsurgery.inspect(bare, template="own")


def test_a_file_is_taken_and_remembered(tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("own"))
    (tmp_path / "mine.jinja").write_text(PICTURES)
    (tmp_path / "mine.json").write_text(json.dumps({"chat_template": PICTURES}))
    talk = messages([("Q", "A")], None, listed=True, at=0)
    for file in ("mine.jinja", "mine.json"):
        out = tmp_path / f"out-{file}"
        dcsurgery.convert(base, out, template=str(tmp_path / file))
        (tmp_path / file).unlink()
        assert load_processor(out).apply_chat_template(talk) == "[user]<image>Q[assistant]A"
        assert read_plan(out).base.template.text == PICTURES  # type: ignore[union-attr]
        assert dcsurgery.verify(out).passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "neither a conversation nor a file"),
        ("", "it is empty"),
        ("{% for %}", "not a chat template"),
    ],
)
def test_what_is_no_template_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("own"))
    if text is not None:
        (tmp_path / "file").write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        dcsurgery.convert(base, tmp_path / "out", template=str(tmp_path / "file"))
    assert "chatml_direct" in (caught.value.hint or "")


def test_a_broken_template_in_the_files_is_told(tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("v1", config=named("vicuna"), own="{% for %}"))
    note = dcsurgery.convert(base, tmp_path / "out").plan.notes[-1]
    assert "conversation v1" in note and "cannot be read" in note
    check_prompts(load_processor(tmp_path / "out"), "v1")


def test_a_template_that_would_run_for_ever_is_not_run(tmp_path: Path) -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    base = llava(tmp_path / "base", Published("own", own=endless))
    assert dcsurgery.convert(base, tmp_path / "out").plan.base.template.name == "own"  # type: ignore[union-attr]


def test_pictures_between_marks_stay_between_them(tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("v1", config={"mm_use_im_start_end": True}))
    found = load_processor(base).apply_chat_template(
        messages([("Q", "A")], None, listed=True, at=0)
    )
    assert "USER: <im_start><image><im_end>\nQ ASSISTANT: A</s>" in found


def test_a_stop_token_that_the_tokenizer_lacks_is_told(tmp_path: Path) -> None:
    base = llava(tmp_path / "base", Published("v1"))
    notes = dcsurgery.convert(base, tmp_path / "out", template="chatml_direct").plan.notes
    assert any("no token <|im_end|>" in note for note in notes)


def test_models_that_carry_their_template_take_no_other(tmp_path: Path) -> None:
    from dcsurgery.tiny.llava import write_tiny_llava

    tiny = write_tiny_llava(tmp_path / "tiny")
    base = llava(tmp_path / "base", Published("v1"))
    dcsurgery.convert(base, tmp_path / "out", form="delta")
    for call in (
        lambda: dcsurgery.convert(tiny, tmp_path / "no", template="v1"),
        lambda: dcsurgery.load(tiny, template="v1"),
        lambda: dcsurgery.load(tmp_path / "out", template="v1"),
    ):
        with pytest.raises(DcSurgeryError, match="template"):
            call()
    assert not (tmp_path / "no").exists()


def test_templates_are_written_for_every_conversation() -> None:
    assert set(REFERENCE) == set(CONVERSATIONS)
    assert all("{% generation %}" in chat_template(name) for name in CONVERSATIONS)
