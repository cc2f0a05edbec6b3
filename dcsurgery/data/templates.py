"""A conversation as one text, with the places of the answers in it.

The processor's own chat template writes it; without one, LLaVA's `plain` (captions) or `v1`
(Vicuna's words) does, as haotian-liu/LLaVA trains them. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

from dcsurgery.data.chat_template import Script, TemplateWriter
from dcsurgery.data.conversations import Turn
from dcsurgery.data.pictures import RowError
from dcsurgery.errors import RequestError

Version = Literal["plain", "v1"]
Prompt = Literal["auto", "plain", "v1"]
V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def prompt_version(prompt: str | None) -> Version | None:
    """Return the version that --prompt names: None, the model's own, for "auto" and None.

    Raises RequestError for any other name.
    """
    if prompt in (None, "auto"):
        return None
    if prompt in get_args(Version):
        return cast(Version, prompt)
    raise RequestError(f"--prompt {prompt} is unknown", hint="use auto, plain or v1")


Writer = Callable[[Sequence[Turn], bool], Script]


def find_writer(processor: Any, version: Version | None = None) -> Writer:
    """Return what writes conversations for this processor: `writer(turns, generate) -> Script`.

    With `generate` the text ends where the next answer begins. `version` asks for LLaVA's prompts
    although the model has a chat template. Raises RequestError when there is no image token.
    """
    token = image_token(processor)
    eos = processor.tokenizer.eos_token or ""
    if version == "plain":
        return lambda turns, generate: write_plain(turns, token, generate)
    template = chat_template(processor)
    if version == "v1" or template is None:
        return lambda turns, generate: write_v1(turns, token, eos, generate)
    return TemplateWriter(processor, template, token, eos)


def image_token(processor: Any) -> str:
    """Return what a prompt holds for a picture, before the processor writes it out."""
    names = (
        (processor, "image_placeholder_token"),
        (processor, "image_token"),
        (processor.tokenizer, "image_token"),
    )
    for owner, name in names:
        found = getattr(owner, name, None)
        if isinstance(found, str):
            return found
        content = getattr(found, "content", None)  # an AddedToken
        if isinstance(content, str):
            return content
    raise RequestError(
        f"{type(processor).__name__} does not say what its image token is",
        hint="use the processor files of the base model",
    )


def chat_template(processor: Any) -> str | None:
    """Return the processor's chat template, else its tokenizer's, else None."""
    for owner in (processor, processor.tokenizer):
        found = getattr(owner, "chat_template", None)
        if isinstance(found, dict):
            found = found.get("default")
        if isinstance(found, str) and found.strip():
            return found
    return None


def write_plain(turns: Sequence[Turn], token: str, generate: bool) -> Script:
    """Return pictures and caption alone, ended by a line break; every other turn is left out."""
    pictures = sum(turn.pictures for turn in turns)
    if not pictures:
        raise RowError("it has no image, which the plain version needs")
    text = token * pictures
    others = [turn for turn in turns if turn.role != "assistant" and turn.text.strip()]
    dropped = tuple(dict.fromkeys(f"{turn.role} turn" for turn in others))
    if generate:
        return Script(text, dropped=dropped)
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    if len(answers) != 1:
        raise RowError(f"it has {len(answers)} answers; the plain version takes one")
    whole = f"{text}{answers[0]}\n"
    return Script(whole, ((len(text), len(whole)),), dropped)


def write_v1(turns: Sequence[Turn], token: str, eos: str, generate: bool) -> Script:
    """Return `system USER: question ASSISTANT: answer</s>USER: ...`.

    As preprocess_multimodal and get_prompt of LLaVA do: the pictures of a turn stand on lines in
    front of its words, whose ends are stripped then; a turn without pictures stays as it is.
    """
    given = turns[0].text if turns and turns[0].role == "system" else V1_SYSTEM
    text = f"{given} "
    spans = []
    for turn in turns:
        if turn.role == "user":
            shown = f"{token}\n" * turn.pictures
            words = f"{shown}{turn.text.strip()}".strip() if shown else turn.text
            text += f"USER: {words} " if words else "USER:"
        elif turn.role == "assistant":
            text += "ASSISTANT:"
            start = len(text)
            text += f" {turn.text}{eos}"
            spans.append((start, len(text)))
    return Script(f"{text}ASSISTANT:" if generate else text, tuple(spans))
