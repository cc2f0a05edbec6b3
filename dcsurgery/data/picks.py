"""Which option of a multiple-choice question a text picks: by its letter, else by its words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

Pick = tuple[int, ...]
# Signs stay: -5 is not 5, and C# is not C.
OUTER = " .,;:!?\"'«»()[]{}*_`~。【】"
STRAIGHT = str.maketrans(
    "\u2018\u2019\u201c\u201d\u2010\u2011\u2012\u2013\u2014\u2212", "''\"\"------"
)
THOUGHT = re.compile(r"^.*</think(?:ing)?>|<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)
CONTAINER = re.compile(
    r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}|<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE
)
LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
WRAPPERS = r"[\s*_`~\"'\[\](){}<>$【】]*"
ITEM = re.compile(
    rf"({WRAPPERS})(?:\b(?:option|choice|letter)s?\b\s*:?|选项|選項)?({WRAPPERS})"
    r"([A-Za-z]{1,2})(?![A-Za-z0-9_']|[.:/-][A-Za-z0-9])([)\]}*_`~\"'>$】]*)"
)
BETWEEN = re.compile(r"\s*(?:,?\s*\b(and|or)\b|[,;/&])\s*", re.IGNORECASE)
# What announces a letter, and what says it afterwards.
ANNOUNCED = re.compile(
    r"\banswers?\b\s*(?:(?:is|are|was|would\s+be|should\s+be|must\s+be)\b)?\s*[:=]?"
    r"|\b(?:choose|chose|pick|select)\b"
    r"|\b(?:correct|right|best|final)\s+(?:option|choice|letter|one)\s*(?:\bis\b|:)"
    r"|答案\s*[是为為]?\s*:?|[选選][择擇项項]?|正解は|정답은",
    re.IGNORECASE,
)
CONFIRMED = re.compile(
    r"(?<![\w'])\(?([A-Z]{1,2})\)?\*{0,2}\s+is\s+(?:the\s+)?(?:correct|right|best|true)\b"
)
NAMED = re.compile(
    r"\(([A-Z]{1,2})\)|\b[Oo]ption\s+([A-Z]{1,2})(?!\w)"
    r"|(?:\b[Ii]s|'s|\b[Bb]e|[:=])\s+\(?([A-Z]{1,2})[\s.!)]*$"
)
FILLERS = set(
    "the my a it correct right best final answer answers option options choice choices letter "
    "letters is are and 选项 選項 答案 答案是".split()
)
NEGATED = re.compile(r"(?:\b(?:not|no|neither|nor)|n't)\s+(?:an?\s+|the\s+)?$")
# Scripts that put no blanks between words.
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


def label(index: int) -> str:
    """Return the letters of an option: A to Z, then AA, AB and so on."""
    high, low = divmod(index, 26)
    return (label(high - 1) if high else "") + chr(ord("A") + low)


def index_of(name: str) -> int:
    """Return the option that letters of either case stand for."""
    found = 0
    for letter in name.upper():
        found = 26 * found + ord(letter) - ord("A") + 1
    return found - 1


def _straight(text: str) -> str:
    """Return a text with wide letters and marks narrow, and curly quotes straight."""
    return unicodedata.normalize("NFKC", text).translate(STRAIGHT)


def plain(text: str) -> str:
    """Return a text without case, doubled blanks and the punctuation around it.

    Signs that mean something stay: a minus, a per cent sign, the point of .5.
    """
    words = " ".join(_straight(text).casefold().split())
    found = words.rstrip(OUTER).lstrip(OUTER.replace(".", ""))
    while found.startswith(".") and not found[1:2].isdigit():
        found = found[1:].lstrip(OUTER.replace(".", ""))
    return found or words


def pick(text: str, options: Sequence[str] = ()) -> Pick:
    """Return the options that a text picks, in their order; () where that cannot be told.

    Without `options` every letter counts. The first of these that is there decides: a letter on its
    own ("B", "**(B)**", "Answer: b"), in a \\boxed{} or a line of its own too; an option's text;
    the last "the answer is B"; a letter that the text starts with ("B. a cat"); the one option it
    names as "(B)" or "option B"; the one option whose words it holds, but for "not a cat".
    """
    text = THOUGHT.sub("", _straight(text)).strip()
    boxes = [first or second for first, second in CONTAINER.findall(text)]
    found = pick(LATEX.sub(r"\1", boxes[-1]), options) if boxes and boxes[-1] else ()
    texts = [plain(option) if option.strip() else None for option in options]
    if found or not text:
        return found
    lines = [line for line in text.splitlines() if line.strip()]
    same = [index for index, option in enumerate(texts) if option == plain(text)]
    if (found := alone(text, len(options))) or same:
        return found or (tuple(same) if len(same) == 1 else ())
    ends = {found for line in (lines[0], lines[-1]) if (found := alone(line, len(options)))}
    if ends:
        return ends.pop() if len(ends) == 1 else ()
    for letters in (_declared(text, texts), _leading(lines), _named(text)):
        if letters:
            return letters if max(letters) < (len(options) or 26) else ()
    return _within(plain(text), texts)


def pick_several(text: str, options: Sequence[str]) -> Pick:
    """Return the options that an answer to a question with several right ones picks.

    As `pick`, and "ACD" or a line for each too.
    """
    lines = [_straight(line) for line in text.splitlines() if line.strip()]
    letters = [_leading([line]) or alone(line, len(options)) for line in lines]
    if len(lines) > 1 and all(letters):
        return tuple(sorted({index for each in letters for index in each}))
    return run_together(text.strip(OUTER), len(options)) or pick(text, options)


def alone(text: str, count: int = 0) -> Pick:
    """Return the options whose letters are all that a text says, "The answer is (B)." included."""
    text = _straight(text)
    if not re.fullmatch(rf"[\w\s/&$#=<>{re.escape(OUTER)}-]*", text) or "#" in text.lstrip("# "):
        return ()
    words = re.findall(r"[^\W_]+", re.sub(r"\bor\b", "|", text.replace("答案是", " ")))
    last = len(words) - 1
    letters = [
        word
        for at, word in enumerate(words)
        if _is_label(word, count or 26) and (word != "a" or at == last or len(words) == 1)
    ]
    rest = [word for word in words if word not in letters and word.casefold() not in FILLERS]
    if not letters or rest or "|" in re.sub(r"\bor\b", "|", text):
        return ()
    return tuple(sorted({index_of(word) for word in letters}))


def run_together(text: str, count: int) -> Pick:
    """Return the options that capitals like "ACD" stand for, each once and in order, else ()."""
    found = tuple(index_of(letter) for letter in text) if re.fullmatch("[A-Z]{2,}", text) else ()
    fits = list(found) == sorted(set(found)) and all(index < count <= 26 for index in found)
    return found if fits else ()


def _is_label(word: str, count: int) -> bool:
    short = len(word) == 1 or (len(word) == 2 and word.isupper())
    return short and word.isascii() and word.isalpha() and index_of(word) < count


def _letters_at(text: str, texts: Sequence[str | None] = ()) -> tuple[Pick, str]:
    """Return the letters that a text begins with and the text behind them.

    A lone word of a sentence ("a dog") is no letter, unless the option's own words follow.
    """
    found: list[int] = []
    rest, at, either = text, ITEM.match(text), False
    while at is not None and (len(at[3]) == 1 or at[3].isupper()):
        tail = text[at.end() :]
        wrapped = bool((at[1] + at[2]).strip() and at[4])
        index = index_of(at[3])
        told = index < len(texts) and plain(tail).startswith(texts[index] or "\0")
        follows = re.match(r"\s+(?!(?:because|since|is|and|or)\b)\w", tail)
        if follows and not (wrapped or told) and (at[3].islower() or at[3] in "AI"):
            break
        found, rest = [*found, index], tail
        between = BETWEEN.match(tail)
        if between is None:
            break
        following = ITEM.match(tail, between.end())
        if following is not None and not re.match(r"\s+\w", tail[following.end() :]):
            either = either or (between[1] or "").lower() == "or"
            text, at = tail, following
        else:
            break
    return (() if either else tuple(sorted(set(found)))), rest


def _declared(text: str, texts: Sequence[str | None]) -> Pick:
    said = [
        (at.start(), letters)
        for at in ANNOUNCED.finditer(text)
        if (letters := _letters_at(text[at.end() :], texts)[0])
    ]
    said += [(at.start(), (index_of(at[1]),)) for at in CONFIRMED.finditer(text)]
    return max(said)[1] if said else ()


def _leading(lines: Sequence[str]) -> Pick:
    """Return the letters that lines begin with; () where the first is none or several differ."""
    found = []
    for line in lines:
        letters, rest = _letters_at(line)
        marked = re.match(r"\s*[.):,;\]](?!\w)|\s+-+\s|\s+(?:because|since)\b", rest)
        closed = line[len(line) - len(rest) - 1] in ")]*" if rest else False
        if letters and (marked or closed):
            found.append(letters)
        elif not found:
            return ()
    return found[0] if len(set(found)) == 1 else ()


def _named(text: str) -> Pick:
    found = {index_of("".join(names)) for names in NAMED.findall(text)}
    return (found.pop(),) if len(found) == 1 else ()


def _within(text: str, texts: Sequence[str | None]) -> Pick:
    """Return the one option whose words a text holds as whole words, outside a longer option's."""
    places = []
    for index, option in enumerate(texts):
        if not option or re.fullmatch("[a-z]", option):
            continue
        edges = ("", "") if UNSPACED.search(option) else (r"(?<!\w)(?<!\d\.)", r"(?!\w)(?!\.\d)")
        for at in re.finditer(edges[0] + re.escape(option) + edges[1], text):
            if not NEGATED.search(text[: at.start()]):
                places.append((at.start(), at.end(), index))
    held = {
        index
        for start, end, index in places
        if not any(s <= start and end <= e and e - s > end - start for s, e, _ in places)
    }
    return (held.pop(),) if len(held) == 1 else ()
