"""A conversation as one text, with the places of the answers in it.

The processor's own chat template writes it; without one, LLaVA's `plain` (captions) or `v1`
(Vicuna's words) does, as haotian-liu/LLaVA trains them. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from dcsurgery.data.conversations import Turn
from dcsurgery.data.pictures import RowError
from dcsurgery.errors import RequestError

Version = Literal["plain", "v1"]
Prompt = Literal["auto", "plain", "v1"]
Span = tuple[int, int]
Message = dict[str, Any]
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


@dataclass(frozen=True)
class Script:
    """A conversation's text and, per answer, its characters [start, end) with the end of turn."""

    text: str
    answers: tuple[Span, ...] = ()


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
    """Return pictures and caption alone, ended by a line break; the question is left out."""
    pictures = sum(turn.pictures for turn in turns)
    if not pictures:
        raise RowError("it has no image, which the plain version needs")
    text = token * pictures
    if generate:
        return Script(text)
    answers = [turn.text.strip() for turn in turns if turn.role == "assistant"]
    if len(answers) != 1:
        raise RowError(f"it has {len(answers)} answers; the plain version takes one")
    whole = f"{text}{answers[0]}\n"
    return Script(whole, ((len(text), len(whole)),))


def write_v1(turns: Sequence[Turn], token: str, eos: str, generate: bool) -> Script:
    """Return `system USER: question ASSISTANT: answer</s>USER: ...`, pictures on lines first."""
    given = turns[0].text if turns and turns[0].role == "system" else V1_SYSTEM
    text = f"{given} "
    spans = []
    for turn in turns:
        if turn.role == "user":
            words = "".join(part for part in turn.parts if part is not None).strip()
            shown = f"{token}\n" * turn.pictures
            text += f"USER: {shown}{words} "
        elif turn.role == "assistant":
            text += "ASSISTANT:"
            start = len(text)
            text += f" {turn.text.strip()}{eos}"
            spans.append((start, len(text)))
    return Script(f"{text}ASSISTANT:" if generate else text, tuple(spans))


class TemplateWriter:
    """Writes conversations with a chat template and finds the answers by what each turn adds."""

    def __init__(self, processor: Any, template: str, token: str, eos: str) -> None:
        self._processor = processor
        self._template = template
        self._token = token
        self._eos = eos
        self._shown = self._placeholder()

    def __call__(self, turns: Sequence[Turn], generate: bool) -> Script:
        messages = [self._message(turn) for turn in turns]
        text = self._render(messages, generate)
        spans = [] if generate else self._spans(turns, messages, text)
        self._count_pictures(turns, text)
        return self._ended(turns, Script(text, tuple(spans)))

    def _placeholder(self) -> str:
        """Return what the template writes for a picture, by writing one.

        Templates of text models read strings, or drop pictures: they get the image token as text.
        """
        self._listed = True
        words = {"type": "text", "text": "dcsurgery"}
        try:
            bare = self._render([{"role": "user", "content": [words]}], False)
            full = self._render([{"role": "user", "content": [{"type": "image"}, words]}], False)
        except RowError:
            bare = full = ""
        start = _shared(bare, full)
        end = _shared(bare[start:][::-1], full[start:][::-1])
        added = full[start : len(full) - end].strip()
        if not added or "dcsurgery" not in bare or "{'type'" in bare:
            self._listed = False
            return self._token
        return self._token if self._token in added else added

    def _message(self, turn: Turn) -> Message:
        if not self._listed:
            words = "".join(f"{self._token}\n" if part is None else part for part in turn.parts)
            return {"role": turn.role, "content": words}
        content: list[dict[str, str]] = [
            {"type": "image"} if part is None else {"type": "text", "text": part}
            for part in turn.parts
        ]
        return {"role": turn.role, "content": content}

    def _render(self, messages: list[Message], generate: bool) -> str:
        from jinja2 import TemplateError
        from transformers import ProcessorMixin

        try:
            return str(
                # Not the processor's own method: SmolVLM's asks the video half for its frames.
                ProcessorMixin.apply_chat_template(
                    self._processor,
                    messages,
                    chat_template=self._template,
                    add_generation_prompt=generate,
                    tokenize=False,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            why = " ".join(str(error).split())[:120]
            raise RowError(f"the chat template refuses it: {why}") from None

    def _spans(self, turns: Sequence[Turn], messages: list[Message], text: str) -> list[Span]:
        spans = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            found = self._added(turn, messages, index, text)
            if found is None:
                return _search(turns, text)
            spans.append(found)
        return spans

    def _added(self, turn: Turn, messages: list[Message], index: int, text: str) -> Span | None:
        """Return what an answer adds to the text before it; None when the text is rewritten."""
        last = index == len(messages) - 1
        upto = text if last else self._render(messages[: index + 1], False)
        head = self._render(messages[:index], True)
        if not text.startswith(upto):
            return None
        start = len(head) if upto.startswith(head) else -1
        if start < 0:
            # The prompt for generating opens something that finished turns do not have.
            before = self._render(messages[:index], False)
            found = upto.find(turn.text.strip(), len(before)) if upto.startswith(before) else -1
            start = found
        if start < 0 or turn.text.strip() not in text[start : len(upto)]:
            return None
        return start, start + len(text[start : len(upto)].rstrip())

    def _count_pictures(self, turns: Sequence[Turn], text: str) -> None:
        wanted = sum(turn.pictures for turn in turns)
        found = text.count(self._shown)
        if found != wanted:
            raise RowError(
                f"its prompt holds {found} times {self._shown!r} for {wanted} images: the text "
                "names the token, or the chat template drops images"
            )

    def _ended(self, turns: Sequence[Turn], script: Script) -> Script:
        """Return the script with the end-of-text token after answers that nothing else ends.

        It takes the place of the blanks there, as LLaVA's v1 has it.
        """
        said = [turn.text.strip() for turn in turns if turn.role == "assistant"]
        text, spans, done = "", [], 0
        for answer, (start, end) in zip(said, script.answers, strict=False):
            body = script.text[start:end]
            text += script.text[done:start]
            begin = len(text)
            text += body
            done = end
            if not body[body.rfind(answer) + len(answer) :].strip():
                text += self._eos
                rest = script.text[end:]
                done += (len(rest) - len(rest.lstrip())) if self._eos else 0
            spans.append((begin, len(text)))
        return Script(text + script.text[done:], tuple(spans))


def _shared(one: str, other: str) -> int:
    """Return how many letters two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _search(turns: Sequence[Turn], text: str) -> list[Span]:
    """Find the answers one after the other, each behind its question.

    For templates that render the last turn otherwise than the others.
    """
    places, at = [], 0
    for turn in turns:
        for part in turn.parts:
            words = (part or "").strip()
            found = text.find(words, at)
            if found < 0:
                raise RowError("the chat template changes its text")
            at = found + len(words)
        if turn.role == "assistant":
            places.append((at - len(turn.text.strip()), at))
    ending = text[places[-1][1] :].rstrip()
    return [
        (start, end + len(ending) if text.startswith(ending, end) else end) for start, end in places
    ]
