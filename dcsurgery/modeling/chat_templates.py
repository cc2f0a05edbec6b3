"""How LLaVA, Mini-Gemini and Dense Connector write prompts, as chat templates.

Words and marks are those of the conversation.py of haotian-liu/LLaVA, dvlab-research/MGM,
HJYao00/DenseConnector and LLaVA-VL/LLaVA-NeXT, under the names these have there. As their
preprocess_multimodal does, pictures come before the words of their message, each on a line of its
own. The beginning-of-sequence token is the tokenizer's to add, but for Llama 3's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)
Marks = tuple[str, str]


@dataclass(frozen=True)
class Conversation:
    """What stands before and after the words of each role; `system` are the words by default.

    `asked` opens an answer that is to be generated, `again` a question that is not the first.
    `inner` puts the system's words inside the first question. `stop` is the token that ends an
    answer; a conversation without one is ended by text, which generate does not see. `bos` writes
    the tokenizer's first token.
    """

    system: str
    opening: Marks
    user: Marks
    answer: Marks
    asked: str
    stop: str = "</s>"
    again: str = ""
    inner: bool = False
    bos: bool = False


def _turns(system: str, head: str, end: str, asking: str, answering: str) -> Conversation:
    """Return a conversation of marked turns; `head` has a place for the role's name."""
    opens = head.format(answering)
    opening, user = ((head.format(role), end) for role in ("system", asking))
    return Conversation(system, opening, user, (opens, end), opens, end.strip())


_CHATML = "<|im_start|>{}\n"
_LLAMA_3 = "<|start_header_id|>{}<|end_header_id|>\n\n"
_INST = Conversation(
    "", ("<<SYS>>\n", "\n<</SYS>>\n\n"), ("[INST] ", " [/INST]"), (" ", " </s>"), "", inner=True
)
CONVERSATIONS: Mapping[str, Conversation] = {
    "v1": Conversation(_V1, ("", " "), ("USER: ", " "), ("ASSISTANT: ", "</s>"), "ASSISTANT:"),
    "v0": Conversation(
        _V1.replace("user", "human"), ("", "###"), ("Human: ", "###"), ("Assistant: ", "###"),
        "Assistant:", "",
    ),
    "llava_llama_2": replace(_INST, system=_HELPFUL, again="<s>"),
    "mistral_instruct": _INST,
    # Mini-Gemini's begins every round with the first token.
    "mgm_mistral_instruct": replace(_INST, again="<s>"),
    "mpt": _turns(_MPT, _CHATML, "<|im_end|>", "user", "assistant"),
    "chatml_direct": _turns("Answer the questions.", _CHATML, "<|im_end|>", "user", "assistant"),
    "qwen_1_5": _turns(
        "You are a helpful assistant.", _CHATML, "<|im_end|>\n", "user", "assistant"
    ),
    # Mini-Gemini's and Dense Connector's; answers do stand under "system" there.
    "llama_3": replace(_turns(_HELPFUL, _LLAMA_3, "<|eot_id|>", "user", "system"), bos=True),
    "llava_llama_3": replace(
        _turns(_HELPFUL, _LLAMA_3, "<|eot_id|>", "user", "assistant"), bos=True
    ),
    "gemma": Conversation(
        "", ("", ""), ("<start_of_turn>user\n", "<end_of_turn>\n"),
        ("<start_of_turn>model\n", "<end_of_turn>\n<eos>"), "<start_of_turn>model\n", "<eos>",
    ),
}  # fmt: skip


def chat_template(name: str, picture: str = "<image>") -> str:
    """Return a conversation as a Jinja template; `picture` is what stands for one.

    Messages are texts, or lists of images and texts.
    """
    talk = CONVERSATIONS[name]
    given = "messages[0]['role'] == 'system'"
    system = _said(talk.opening, "words")
    before = f"{{% set words = {_quoted(talk.system)} %}}" if talk.system else ""
    start = f"{{% if not ({given}) %}}{before}{system}{{% endif %}}" if talk.system else ""
    first = _written(talk.user[0])
    if talk.inner:
        inside = f"{{% if {given} %}}{{% set words = say(messages[0]['content']) %}}{system}"
        inside += f"{{% else %}}{before}{system}{{% endif %}}" if talk.system else "{% endif %}"
        first += f"{{% if asked.first %}}{inside}{{% endif %}}"
        start = system = ""
    again = f"{{% if not asked.first %}}{_written(talk.again)}{{% endif %}}" if talk.again else ""
    answer = _said(("", talk.answer[1]), "words")
    return (f"{_say(picture)}{{{{ bos_token }}}}" if talk.bos else _say(picture)) + (
        f"{{% set asked = namespace(first=true) %}}{start}"
        "{% for message in messages %}{% set words = say(message['content']) %}"
        f"{{% if message['role'] == 'user' %}}{again}{first}"
        f"{{{{ say(message['content']) }}}}{_written(talk.user[1])}{{% set asked.first = false %}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{_written(talk.answer[0])}{{% generation %}}{answer}{{% endgeneration %}}"
        f"{{% else %}}{system}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{_written(talk.asked)}{{% endif %}}"
    )


def with_pictures(template: str, picture: str = "<image>") -> str:
    """Return a text model's template for messages with pictures: it gets them as plain texts."""
    return (
        f"{_say(picture)}{{% set plain = namespace(messages=[]) %}}"
        "{% for message in messages %}{% set plain.messages = plain.messages + "
        "[{'role': message['role'], 'content': say(message['content'])}] %}{% endfor %}"
        "{% set messages = plain.messages %}" + template
    )


def _say(picture: str) -> str:
    """Return a macro that writes a message's content: pictures first, then its words."""
    return (
        "{% macro say(content) %}{% if content is string %}{{ content }}{% else %}"
        "{% set seen = namespace(text='', pictures='') %}{% for part in content %}"
        "{% if part['type'] == 'text' %}{% set seen.text = seen.text + part['text'] %}"
        f"{{% else %}}{{% set seen.pictures = seen.pictures + {_quoted(picture + chr(10))} %}}"
        "{% endif %}{% endfor %}"
        "{{ seen.pictures }}{{ seen.text | trim if seen.pictures else seen.text }}"
        "{% endif %}{% endmacro %}"
    )


def _said(marks: Marks, name: str) -> str:
    return f"{_written(marks[0])}{{{{ {name} }}}}{_written(marks[1])}"


def _written(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    """Return a Jinja string: engines treat line breaks in a template's own text differently."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
