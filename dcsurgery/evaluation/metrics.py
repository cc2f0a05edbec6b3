"""How an answer is scored. Every score lies in 0..1; the loss metric is computed by the model.

exact    1 when the answer equals one of the references, but for case, blanks and the punctuation
         around it. Where all references of the data are yes and no, POPE's rule reads the answer.
vqa      the accuracy of the VQA challenge (Antol et al. 2015, section 4): after normalisation,
         min(matching humans / 3, 1), averaged over all ways to leave one human out.
choice   1 when the answer picks the right options and no others, by letter or by text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from dcsurgery.data.conversations import Row
from dcsurgery.data.picks import label, pick, pick_several, plain
from dcsurgery.errors import RequestError
from dcsurgery.evaluation.eval_report import Metric, YesNo

METRICS = get_args(Metric)
# Counts up when an answer is read otherwise than before: scores of two versions never mix.
VERSION = 2
YES_NO = "all references are yes or no: an answer is no when its first sentence says no or not"
AGREEING = 3
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


@dataclass(frozen=True)
class Judged:
    """A score, what the answer was read as, and whether that is plain from its words."""

    score: float
    read: str | None = None
    clear: bool = True


def judge(metric: str, answer: str, row: Row, *, yes_no: bool = False) -> Judged:
    """Return the score of an answer by "exact", "vqa" or "choice"; `yes_no` as in the module."""
    if metric == "choice":
        several = len(row.right) > 1
        found = (pick_several if several else pick)(answer, row.options)
        clear = len(found) == 1 or (several and bool(found))
        read = ", ".join(map(label, found)) or None
        return Judged(float(bool(found) and found == row.right), read, clear)
    if metric == "vqa":
        return Judged(vqa(answer, row))
    if yes_no:
        said, clear = read_yes_no(answer)
        return Judged(float(said in map(plain, row.answers)), said, clear)
    return Judged(float(plain(answer) in map(plain, row.answers)))


def is_yes_no(row: Row) -> bool:
    """Whether all references of a row are yes or no."""
    return all(plain(answer) in ("yes", "no") for answer in row.answers)


def read_yes_no(answer: str) -> tuple[str, bool]:
    """Return "no" or "yes" as POPE's evaluate.py reads an answer, and whether it says either.

    The first sentence is no when "no" or "not" is a word of it, else yes. Unlike there, capitals
    and punctuation do not hide the word.
    """
    sentence = re.split(r"[.\n]", answer.strip(" .\n\t"), maxsplit=1)[0]
    words = [plain(word) for word in sentence.replace(",", "").split()]
    no = "no" in words or "not" in words
    return ("no" if no else "yes"), no or "yes" in words


def yes_no_counts(read: Iterable[tuple[str | None, Row]]) -> YesNo:
    """Return POPE's numbers for answers read as yes or no, yes being what is looked for."""
    pairs = [
        (said == "yes", Counter(map(plain, row.answers)).most_common(1)[0][0] == "yes")
        for said, row in read
    ]
    found = Counter(pairs)
    hits, said, wanted = found[True, True], sum(s for s, _ in pairs), sum(w for _, w in pairs)
    return YesNo(
        accuracy=(hits + found[False, False]) / len(pairs),
        precision=hits / said if said else None,
        recall=hits / wanted if wanted else None,
        f1=2 * hits / (said + wanted) if said + wanted else None,
        yes_share=said / len(pairs),
    )


def check_metric(metric: str) -> None:
    """Raise RequestError for a metric that there is not."""
    if metric not in METRICS:
        raise RequestError(
            f"--metric {metric} is unknown", hint=f"choose one of {', '.join(METRICS)}"
        )


def vqa(answer: str, row: Row) -> float:
    """Return the VQA accuracy of an answer against the humans'; one reference must be equal.

    Of a multiple-choice row, the right option's letter or text must be. Both sides are always
    normalised, also where all humans agree.
    """
    found = vqa_normalised(answer)
    matches = [vqa_normalised(reference) == found for reference in row.answers]
    if len(matches) == 1 or row.right:
        return float(any(matches))
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
