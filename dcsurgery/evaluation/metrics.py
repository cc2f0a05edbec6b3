"""How an answer is scored. Every score lies in 0..1; the loss metric is computed by the model.

exact    1 when the answer equals one of the references, but for case, blanks and the punctuation
         around it.
vqa      the accuracy of the VQA challenge (Antol et al. 2015, section 4): after normalisation,
         min(matching humans / 3, 1), averaged over all ways to leave one human out.
choice   1 when the answer picks the right option, by its letter or its text.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping

from dcsurgery.data.conversations import Row

AGREEING = 3
PROMPT = "Answer with the option's letter from the given choices directly."
NUMBERS = "zero one two three four five six seven eight nine ten"
DIGITS = {word: str(value) for value, word in enumerate(NUMBERS.split())} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am
mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _lost_apostrophes() -> dict[str, str]:
    """Map every spelling that lost one apostrophe, or all, to the full one."""
    found: dict[str, str] = {}
    for word in CONTRACTIONS.split():
        places = [index for index, letter in enumerate(word) if letter == "'"]
        found |= {word[:place] + word[place + 1 :]: word for place in places}
        found[word.replace("'", "")] = word
    return found


RESTORED = _lost_apostrophes()


def score(metric: str, answer: str, row: Row) -> float:
    """Return the score of an answer by "exact", "vqa" or "choice"."""
    return SCORERS[metric](answer, row)


def exact(answer: str, row: Row) -> float:
    """Return 1.0 for an answer that equals a reference, see the module."""
    return float(plain(answer) in {plain(reference) for reference in row.answers})


def plain(text: str) -> str:
    """Return a text without case, outer punctuation and doubled blanks."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(string.punctuation + " ")


def vqa(answer: str, row: Row) -> float:
    """Return the VQA accuracy of an answer against the humans'; one reference must be equal.

    Both sides are always normalised, also where all humans agree.
    """
    found = vqa_normalised(answer)
    matches = [vqa_normalised(reference) == found for reference in row.answers]
    if len(matches) == 1:
        return float(matches[0])
    total = sum(matches)
    left_out = [min((total - match) / AGREEING, 1.0) for match in matches]
    return sum(left_out) / len(left_out)


def vqa_normalised(text: str) -> str:
    """Return an answer as the VQA challenge compares it.

    No case, articles or periods; number words as digits; lost apostrophes restored; punctuation
    dropped beside blanks and in texts with numbers like 1,000, a blank elsewhere.
    """
    text = " ".join(text.split())
    spread = DIGIT_COMMA.search(text) is not None
    found = text
    for sign in PUNCTUATION:
        beside = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if beside or spread else " ")
    words = (DIGITS.get(word, word) for word in PERIOD.sub("", found).lower().split())
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def choice(answer: str, row: Row) -> float:
    """Return 1.0 when the answer picks the option that the first reference names."""
    right = chosen(row.answers[0], row.options)
    if right is None and row.answers[0].strip().isdigit():
        number = int(row.answers[0])  # data sets that count options from 0
        right = number if number < len(row.options) else None
    return float(right is not None and chosen(answer, row.options) == right)


LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
FIRST_LETTER = re.compile(r"\(?([A-Z])(?:[).:,]|\n)")
NAMED_LETTER = re.compile(r"(?:answer|option|choice)(?: is)?:? \(?([A-Z])\b", re.IGNORECASE)


def chosen(text: str, options: tuple[str, ...]) -> int | None:
    """Return the index of the option that a text picks; None when it picks none or several.

    In this order: the whole text is an option's, or a letter; it starts with a letter and a mark;
    it says "answer is B"; exactly one option's text occurs in it.
    """
    texts = [plain(option) for option in options]
    said = plain(text)
    if said in texts:
        return texts.index(said)
    stripped = text.strip()
    for found in (
        LETTER.fullmatch(stripped),
        FIRST_LETTER.match(stripped),
        NAMED_LETTER.search(stripped),
    ):
        if found is not None:
            index = ord(found[1].upper()) - ord("A")
            return index if not options or index < len(options) else None
    within = [i for i, option in enumerate(texts) if option and _holds(said, option)]
    return within[0] if len(within) == 1 else None


def _holds(text: str, part: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def with_options(question: str, options: tuple[str, ...]) -> str:
    """Return the question with its options listed by letter, unless it shows them already."""
    if not options or all(plain(option) in plain(question) for option in options):
        return question
    listed = "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))
    return f"{question}\n{listed}\n{PROMPT}"


SCORERS: Mapping[str, Callable[[str, Row], float]] = {"exact": exact, "vqa": vqa, "choice": choice}
