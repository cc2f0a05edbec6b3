"""Which chat template an original gets: its own, or that of the conversation it was trained with.

The reference code never reads a tokenizer's chat template: it trains with a conversation of its own
conversation.py. The template that a text tokenizer brings is the language model's, and tells which
conversation that was: the same marks, other blanks and other default words. A template that knows
pictures, or that no published language model has, was written for this model, and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dcsurgery.errors import RequestError
from dcsurgery.modeling.chat_templates import CONVERSATIONS, chat_template, with_pictures
from dcsurgery.originals.adopted import Template, render_json
from dcsurgery.originals.tokens import TokenizerFiles

OWN = "own"
TEMPLATE_FILE, TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"
_FOLDER = "additional_chat_templates/"
# What may end an answer in a template that is not one of ours.
_STOPS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
# A name or path -> the family of conversations it speaks of; the first that fits.
_NAMES = (
    ("v1", r"bakllava"),
    ("llama_3", r"llama-?_?3(?!\d)"),
    ("chatml", r"hermes|(?:^|\W)yi-|34b"),
    ("inst", r"mi[sx]tral.*instruct|v1\.6-mistral|8x7b|llama-?2.*chat"),
    ("v1", r"vicuna|mistral-7b-v0|llava[-_.]?v?1|(?:mgm|mini-?gemini)-(?:7|13)b"),
    ("mpt", r"mpt"),
    ("inst", r"mistral"),
)
_ROWS = {128_256: "llama_3", 64_000: "chatml"}
# What each language model's own template makes of three turns, first token aside.
_SYSTEM = (
    r"(?:<\|im_start\|>system\n(?:You are Qwen, [^.]*\. )?You are a helpful assistant\.?"
    r"<\|im_end\|>\n)?"
)
_DATES = (
    r"(?:<\|start_header_id\|>system<\|end_header_id\|>\n\nCutting Knowledge[^<]*<\|eot_id\|>)?"
)
_BASES = {
    "chatml": _SYSTEM + "".join(
        rf"<\|im_start\|>{role}\n{text}<\|im_end\|>\n"
        for role, text in (("user", "Q"), ("assistant", "A"), ("user", "R"))
    ) + r"(?:<\|im_start\|>assistant\n)?",
    "inst": r"\[INST\] ?Q ?\[/INST\] ?A ?(?:<eos>|</s>)? ?(?:<bos>|<s>)?\[INST\] ?R ?\[/INST\]",
    "llama_3": _DATES + "".join(
        rf"<\|start_header_id\|>{role}<\|end_header_id\|>\n\n{text}<\|eot_id\|>"
        for role, text in (("user", "Q"), ("assistant", "A"), ("user", "R"))
    ) + r"(?:<\|start_header_id\|>assistant<\|end_header_id\|>\n\n)?",
    "gemma": r"<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    r"<start_of_turn>user\nR<end_of_turn>\n(?:<start_of_turn>model\n)?",
}  # fmt: skip
_TALK = [
    {"role": role, "content": text}
    for role, text in zip(("user", "assistant", "user"), "QAR", strict=True)
]


@dataclass(frozen=True)
class Prompt:
    """The chat template an original is presented with; `note` says which, and why."""

    template: Template
    text: str
    note: str
    stops: tuple[str, ...]

    def files(self, side_files: tuple[str, ...]) -> dict[str, bytes]:
        """Return the files that make transformers use it, whatever else lies there."""
        found: dict[str, bytes] = {}
        # transformers refuses chat_template.json beside a folder of templates.
        folder = any(name.startswith(_FOLDER) for name in side_files)
        if folder or TEMPLATE_FILE in side_files:
            found[TEMPLATE_FILE] = self.text.encode()
        if not folder:
            found[TEMPLATE_JSON] = render_json({"chat_template": self.text})
        return found


@dataclass(frozen=True)
class Speaker:
    """Whose prompts are looked for: the language model's type, its words, and the code base."""

    model_type: str
    rows: int
    code: str  # "llava", "dense_connector" or "mgm"
    picture: str = "<image>"

    def conversation(self, family: str) -> str:
        """Return the conversation by which this code base trains a family's language models."""
        if family == "chatml":
            return "qwen_1_5" if self.model_type == "qwen2" else "chatml_direct"
        if family == "inst" and self.model_type == "llama":
            return "llava_llama_2"
        if family == "inst":
            return "mgm_mistral_instruct" if self.code == "mgm" else "mistral_instruct"
        return "llava_llama_3" if family == "llama_3" and self.code == "llava" else family


def read_template(asked: str) -> Template:
    """Return what --template names: a conversation, "own", or a file (Jinja, or JSON with one).

    Raises RequestError.
    """
    if asked in CONVERSATIONS or asked == OWN:
        return Template(asked)
    path = Path(asked).expanduser()
    names = f"conversations are {', '.join(CONVERSATIONS)}, and own: the tokenizer's"
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            text = _default(json.loads(text)["chat_template"]) or ""
    except (OSError, UnicodeDecodeError):
        raise RequestError(
            f"--template {asked} is neither a conversation nor a file", hint=names
        ) from None
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"{asked} has no key chat_template", hint=names) from None
    problem = "it is empty" if not text.strip() else _problem(text)
    if problem:
        raise RequestError(f"{asked} is not a chat template: {problem}", hint=names)
    return Template(path.name, text)


def choose_prompt(files: TokenizerFiles, speaker: Speaker, asked: Template | None) -> Prompt:
    """Return the chat template of an original.

    Raises RequestError where "own" is asked for and the tokenizer has none.
    """
    own = _own_template(files)
    if asked is not None:
        if asked.text is not None:
            return _file(asked, f"the prompts follow {asked.name}, as asked")
        if asked.name != OWN:
            return _trained(asked.name, speaker, "as asked")
        if own is None:
            raise RequestError(
                f"{files.source.ref.name} has no chat template of its own",
                hint=f"--template takes a file or one of {', '.join(CONVERSATIONS)}",
            )
        return _owned(own, speaker, "as asked")
    broken = ""
    if own is not None:
        problem = _problem(own)
        if problem is None and "image" in own:
            return _owned(own, speaker, "it knows pictures")
        family = None if problem else _base_family(own)
        if problem is None and family is None:
            return _owned(own, speaker, "no language model of these code bases has it")
        if family == "inst" and "bakllava" in _names(files):
            return _trained("v1", speaker, "BakLLaVA was trained with it")
        if family is not None:
            why = "the tokenizer's own template is its language model's, which LLaVA never reads"
            return _trained(speaker.conversation(family), speaker, why)
        broken = f" (the template in its files cannot be read: {problem})"
    found, why = _evidence(files, speaker)
    return _trained(found, speaker, why + broken)


def _evidence(files: TokenizerFiles, speaker: Speaker) -> tuple[str, str]:
    """Return the conversation that model type, tokens, names or vocabulary tell, and which did."""
    by_type = {"qwen2": "chatml", "gemma": "gemma", "mixtral": "inst"}.get(speaker.model_type)
    if by_type:
        return speaker.conversation(by_type), f"its language model is a {speaker.model_type}"
    known = files.ids()
    for token, family in (("<|start_header_id|>", "llama_3"), ("<|im_start|>", "chatml")):
        if token in known:
            return speaker.conversation(family), f"its tokenizer has {token}"
    for name in _names(files).split("\n"):
        for family, pattern in _NAMES:
            if re.search(pattern, name):
                return speaker.conversation(family), f"it is named {name!r}"
    for rows, family in _ROWS.items():
        if rows <= speaker.rows < rows + 512:
            return speaker.conversation(family), f"its vocabulary has {speaker.rows} words"
    if speaker.code != "llava":
        return "v1", "its code base trains such models with it"
    return "v1", (
        "LLaVA's default: nothing in the checkpoint says how it was trained. "
        "--template NAME or FILE chooses another"
    )


def _names(files: TokenizerFiles) -> str:
    source = files.source
    before = str(source.config.get("_name_or_path") or "").lower()
    return f"{before}\n{PurePosixPath(source.ref.name).name.lower()}"


def _trained(name: str, speaker: Speaker, why: str) -> Prompt:
    stop = CONVERSATIONS[name].stop
    text = chat_template(name, speaker.picture)
    note = f"prompts follow the conversation {name}: {why}"
    return Prompt(Template(name), text, note, (stop,) if stop else ())


def _owned(own: str, speaker: Speaker, why: str) -> Prompt:
    text = own if "image" in own else with_pictures(own, speaker.picture)
    note = f"prompts follow the original's own chat template: {why}"
    return Prompt(Template(OWN), text, note, tuple(stop for stop in _STOPS if stop in own))


def _file(asked: Template, note: str) -> Prompt:
    text = str(asked.text)
    return Prompt(asked, text, note, tuple(stop for stop in _STOPS if stop in text))


def _own_template(files: TokenizerFiles) -> str | None:
    """Return the chat template the original brings, in the order in which transformers looks."""
    source = files.source
    if TEMPLATE_FILE in source.side_files:
        return source.read_file(TEMPLATE_FILE).decode("utf-8", errors="replace")
    for name in (TEMPLATE_JSON, "processor_config.json", "tokenizer_config.json"):
        if found := _default(files.object(name).get("chat_template")):
            return found
    return None


def _default(stated: Any) -> str | None:
    """Return a template, of a list or table of named ones the default."""
    if isinstance(stated, list):
        stated = {e.get("name"): e.get("template") for e in stated if isinstance(e, Mapping)}
    found = stated.get("default") if isinstance(stated, Mapping) else stated
    return found if isinstance(found, str) and found.strip() else None


def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    extensions = ["jinja2.ext.loopcontrols"]
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )


def _plain(template: str) -> str:
    """Return a template without the marks of answers, which are transformers' own."""
    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)


def _problem(template: str) -> str | None:
    """Return why a template cannot be parsed; None when it can."""
    from jinja2 import TemplateError

    try:
        _environment().parse(_plain(template))
    except (TemplateError, RecursionError) as error:
        return " ".join(str(error).split())[:120]
    return None


def _base_family(template: str) -> str | None:
    """Return whose language model's template this is, by what it writes; None for another's.

    A stranger's template is only run where it can do no more than walk through the messages.
    """
    from jinja2 import TemplateError, nodes

    environment = _environment()
    tree = environment.parse(_plain(template))
    loops = [loop for loop in tree.find_all(nodes.For) if not _walks(loop.iter)]
    if loops or any(True for _ in tree.find_all((nodes.Mul, nodes.Pow, nodes.Macro))):
        return None

    def refuse(message: str) -> None:
        raise TemplateError(message)

    try:
        said = environment.from_string(_plain(template)).render(
            messages=_TALK, add_generation_prompt=True, bos_token="<bos>", eos_token="<eos>",
            raise_exception=refuse, strftime_now=lambda _: "26 Jul 2024", tools=None,
        )  # fmt: skip
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    said = re.sub(r"^\s*(?:<bos>|<s>|<\|begin_of_text\|>|<\|startoftext\|>)", "", said)
    return next((name for name, base in _BASES.items() if re.fullmatch(base, said)), None)


def _walks(node: Any) -> bool:
    """Whether a loop goes through what it is given: messages, a part of them, a table's items."""
    from jinja2 import nodes

    if isinstance(node, nodes.Name):
        return bool(node.name != "range")
    if isinstance(node, nodes.Call):
        return isinstance(node.node, nodes.Getattr) and node.node.attr == "items"
    inner = isinstance(node, nodes.Getitem | nodes.Getattr | nodes.Filter)
    return inner and node.node is not None and _walks(node.node)
