"""Conversations as a model's own chat template writes them. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dcsurgery.data.conversations import Turn
from dcsurgery.data.pictures import RowError

Span = tuple[int, int]
Message = dict[str, Any]


@dataclass(frozen=True)
class Script:
    """A conversation's text and, per answer, its characters [start, end) with the end of turn.

    `dropped` names what the text lacks or has in other words: "system turn", "user turn", ...
    """

    text: str
    answers: tuple[Span, ...] = ()
    dropped: tuple[str, ...] = ()


class TemplateWriter:
    """Writes conversations with a chat template and finds the answers by what each turn adds."""

    def __init__(self, processor: Any, template: str, token: str, eos: str) -> None:
        self._processor = processor
        self._template = template
        self._token = token
        self._eos = eos
        self._shown = self._placeholder()
        self._lost: dict[Any, set[tuple[int, int]]] = {}

    def __call__(self, turns: Sequence[Turn], generate: bool) -> Script:
        messages = [self._message(turn) for turn in turns]
        text = self._render(messages, generate)
        try:
            spans = self._spans(turns, messages, text)
        except RowError:
            if not generate:
                raise
            spans = []
        self._count_pictures(turns, text)
        dropped = self._dropped(turns, text, generate)
        return replace(self._ended(turns, Script(text, tuple(spans))), dropped=dropped)

    def _placeholder(self) -> str:
        """Return what the template writes for a picture, by writing one.

        Templates of text models read strings, or drop pictures: they get the image token as text.
        """
        self._listed, self._breaks = True, False
        words = {"type": "text", "text": "dcsurgery"}
        try:
            bare = self._render([{"role": "user", "content": [words]}], False)
            full = self._render([{"role": "user", "content": [{"type": "image"}, words]}], False)
        except RowError:
            bare = full = ""
        start = _shared(bare, full)
        end = _shared(bare[start:][::-1], full[start:][::-1])
        added = full[start : len(full) - end]
        if not added.strip() or "dcsurgery" not in bare or "{'type'" in bare:
            self._listed = False
            return self._token
        self._breaks = added.endswith("\n")
        return self._token if self._token in added else added.strip()

    def _message(self, turn: Turn) -> Message:
        if not self._listed:
            return {"role": turn.role, "content": _inline(turn.parts, self._token)}
        content: list[dict[str, str]] = [
            {"type": "image"} if part is None else {"type": "text", "text": part}
            for part in (_unbroken(turn.parts) if self._breaks else turn.parts)
        ]
        return {"role": turn.role, "content": content}

    def _dropped(self, turns: Sequence[Turn], text: str, generate: bool) -> tuple[str, ...]:
        """Name the turns whose words are not all in the text, blanks aside.

        A short word may stand there by chance, so that made-up ones are put in its place as well.
        """
        shape = generate, tuple((turn.role, tuple(map(bool, turn.parts))) for turn in turns)
        if shape not in self._lost:
            self._lost[shape] = self._lost_of(turns, generate)
        letters = "".join(text.split())
        found = [
            f"{turn.role} turn"
            for at, turn in enumerate(turns)
            for place, part in enumerate(turn.parts)
            if part and part.strip()
            if (at, place) in self._lost[shape] or "".join(part.split()) not in letters
        ]
        return tuple(dict.fromkeys(found))

    def _lost_of(self, turns: Sequence[Turn], generate: bool) -> set[tuple[int, int]]:
        """Return turn and part of the texts that the template does not write."""
        names = {
            (at, place): f"dcsurgery{at}part{place}end"
            for at, turn in enumerate(turns)
            for place, part in enumerate(turn.parts)
            if part
        }
        marked = [
            Turn(turn.role, tuple(names.get((at, n), part) for n, part in enumerate(turn.parts)))
            for at, turn in enumerate(turns)
        ]
        try:
            text = self._render([self._message(turn) for turn in marked], generate).lower()
        except RowError:
            return set()
        return {place for place, name in names.items() if name not in text}

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


def _unbroken(parts: Sequence[str | None]) -> list[str | None]:
    """Return parts without the line breaks behind leading pictures, which the template writes."""
    kept: list[str | None] = []
    for part in parts:
        if any(kept) or part is None:
            kept.append(part)
        elif not kept:
            kept.append(part)
        elif part.strip():
            kept.append(part.removeprefix("\r").removeprefix("\n"))
    return kept


def _inline(parts: Sequence[str | None], token: str) -> str:
    """Return parts as one text; leading pictures stand on lines of their own, as LLaVA has them."""
    text = ""
    for part in parts:
        alone = text.endswith(token) and not text.replace(token, "").strip()
        text += "\n" if alone and not (part or "").startswith(("\n", "\r")) else ""
        text += token if part is None else part
    return text


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
