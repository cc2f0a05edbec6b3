"""What answers score: every metric, through `eval --answers`, with no model."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run

pytestmark = pytest.mark.slow

ANIMALS = ["cat", "dog", "cow", "hen"]
LETTERS = ["C", "A", "B", "D"]
NUMBERS = ["2", "4", "0"]


def write(path: Path, items: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return path


class Scorer:
    """Scores one answer per row; the report of the last call is kept."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.report: dict[str, Any] = {}

    def scores(self, metric: str, rows: list[dict[str, Any]], said: list[str]) -> list[float]:
        rows = [{"id": f"q{n}", "question": "Which?", **row} for n, row in enumerate(rows)]
        data = self.folder / "rows.json"
        data.write_text(json.dumps(rows))
        answers = [{"id": f"q{n}", "answer": text} for n, text in enumerate(said)]
        file = write(self.folder / "answers.jsonl", answers)
        arguments = ["--data", data, "--answers", file, "--metric", metric, "--json"]
        out = self.folder / "out"
        result = self.run("eval", *arguments, "-o", out, "--overwrite", "--max-bad", 99)
        assert result.exit_code == 0, result.stderr
        self.report = json.loads(result.stdout)
        lines = (out / "answers.jsonl").read_text().splitlines()[1:]
        return [json.loads(line)["score"] for line in lines]


@pytest.fixture
def scorer(run: Run, tmp_path: Path) -> Scorer:
    return Scorer(run, tmp_path)


FORMS = (
    "B", "b", "**B**", "(B)", "[B]", "B.", "B)", "B:", "`B`", "\uff22", "Option B", "option (b)",
    "The answer is B", "The answer is b.", "Answer: B", "**Answer: B**", "Answer: **B**", "B: dog",
    "B. dog", "(B) dog", "B) dog, because it barks", "\\boxed{B}", "$\\boxed{\\text{B}}$",
    "<answer>B</answer>", "<think>A? No.</think>\nB", "B\n\nA cat would be smaller.",
    "The correct answer is (B).", "The answer is B. Note that A is a common distractor.",
    "I considered (A), but it is wrong. Final answer: B", "B is correct.", "B because it barks",
    "I would choose option B", "Based on the picture, so (B).", "Dog", "a dog", "It is a dog.",
    "It is not a cat but a dog.", "\u7b54\u6848\u662fB\u3002", "The answer is dog.",
)  # fmt: skip
UNDECIDED = (
    "A or B", "The answer is A or B", "a cat or a dog", "E", "Answer: E", "horse", "", "AB",
    "A. cat\nB. dog\nC. cow\nD. hen", "The answer is not B", "I don't know", "dogs", "2", "A, B",
    "<think>It is B", "Both B and C", "Answer: B. Final answer: Z",
)  # fmt: skip
OTHERS = ("A", "C. cow", "The answer is D because B is wrong", "A dog is not it: C", "hen", "A cat")


def test_a_letter_is_what_the_prompt_asked_for(scorer: Scorer) -> None:
    rows = [{"options": ANIMALS, "answer": "B"}] * len(FORMS)
    scores = scorer.scores("choice", rows, list(FORMS))
    assert [form for form, score in zip(FORMS, scores, strict=True) if score != 1] == []
    assert scorer.report["models"][0]["unclear"] == 0


def test_what_picks_nothing_or_several_is_wrong_and_counted(scorer: Scorer) -> None:
    said = [*UNDECIDED, *OTHERS]
    assert scorer.scores("choice", [{"options": ANIMALS, "answer": "B"}] * len(said), said) == [
        0.0
    ] * len(said)
    assert scorer.report["models"][0]["unclear"] == len(UNDECIDED)


Case = tuple[list[dict[str, Any]], str]
RIGHT: dict[str, Case] = {
    "a string that can only be a number": ([{"options": LETTERS, "answer": "0"}], "A"),
    "an integer is a number from 0": ([{"options": NUMBERS, "answer": 2}], "C"),
    "a table's float is an integer": ([{"options": ANIMALS, "answer": 1.0}], "B"),
    "integers that reach n count from 1": (
        [{"options": ANIMALS, "answer": n} for n in (4, 1, 2)],
        "DAB",
    ),
    "integers with a 0 count from 0": (
        [{"options": ANIMALS, "answer": n} for n in (0, 3, 1)],
        "ADB",
    ),
    "numbers of other rows are indices": (
        [{"options": NUMBERS, "answer": "2"}, {"options": ANIMALS, "answer": "0"}],
        "CA",
    ),
    "texts of other rows are texts": (
        [{"options": NUMBERS, "answer": "2"}, {"options": ANIMALS, "answer": "dog"}],
        "AB",
    ),
    "letters of other rows are letters": (
        [{"options": LETTERS, "answer": "A"}, {"options": ANIMALS, "answer": "B"}],
        "AB",
    ),
    "letters among texts are texts": (
        [{"options": LETTERS, "answer": "A"}, {"options": ANIMALS, "answer": "hen"}],
        "BD",
    ),
    "text and number agree": ([{"options": list("1234"), "answer": n} for n in ("4", "2")], "DB"),
    "integers that are no index are texts": (
        [{"options": [2, 4, 7], "answer": n} for n in (7, 2)],
        "CA",
    ),
    "letters in every form": (
        [{"options": ANIMALS, "answer": n} for n in ("(B)", "b", "C.", "D) hen", "A. cat")],
        "BBCDA",
    ),
    "true and false": (
        [
            {"options": ["Yes", "No"], "answer": True},
            {"options": ["True", "False"], "answer": False},
        ],
        "AB",
    ),
    "options in a table": (
        [
            {"options": {"A": "cat", "B": "dog"}, "answer": "B"},
            {"options": {"1": "cat", "2": "dog"}, "answer": "1"},
            {"choices": {"text": ["cat", "dog"], "label": ["1", "2"]}, "answer": "2"},
            {"choices": [{"id": "x", "text": "cat"}, {"id": "y", "text": "dog"}], "answer": "y"},
        ],
        "BABB",
    ),
    "options in a text": (
        [
            {"options": "(a) cat (b) dog", "answer": "b"},
            {"options": "A. cat\nB. dog", "answer": "dog"},
            {"options": "['cat', 'dog']", "answer": "B"},
            {"options": "cat|dog", "answer": "dog"},
        ],
        "BBBB",
    ),
    "options with their letters": ([{"options": ["A. cat", "B. dog"], "answer": "dog"}], "B"),
    "several humans": ([{"options": ANIMALS, "answers": ["dog", "dog", "cat"]}], "B"),
    "options in the question alone": (
        [
            {"question": f"Which?\nA. cat\nB. dog\n{SAY}", "answer": n}
            for SAY in ("", "Say a letter.")
            for n in ("B", "dog")
        ],
        "BBBB",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_option_is_what_the_data_means(scorer: Scorer, name: str) -> None:
    rows, letters = RIGHT[name]
    assert scorer.scores("choice", rows, list(letters)) == [1.0] * len(rows)
    wrong = ["B" if letter == "A" else "A" for letter in letters]
    assert scorer.scores("choice", rows, wrong) == [0.0] * len(rows)


def test_more_options_than_letters(scorer: Scorer) -> None:
    many = [f"thing {n}" for n in range(30)]
    rows = [{"options": many, "answer": n} for n in (25, 26, 29)]
    assert scorer.scores("choice", rows, ["Z", "AA", "The answer is AD."]) == [1, 1, 1]
    assert scorer.scores("choice", rows, ["A", "A", "A"]) == [0, 0, 0]


@pytest.mark.parametrize("answer", ["AC", "A, C", ["A", "C"], ["cat", "cow"], [0, 2], "['A', 'C']"])
def test_several_right_options_are_right_together(scorer: Scorer, answer: Any) -> None:
    said = ["A, C", "AC", "A and C", "(C), (A)", "A. cat\nC. cow", "A", "A, B, C", "A or C"]
    rows = [{"options": ANIMALS, "answer": answer}] * len(said)
    assert scorer.scores("choice", rows, said) == [1, 1, 1, 1, 1, 0, 0, 0]


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "text or number": (
        [{"options": NUMBERS, "answer": "2"}],
        "its answer '2' may be option C as its number from 0 or option A as its text",
    ),
    "text or letter": ([{"options": LETTERS, "answer": "A"}], "option B as its text or option A"),
    "other rows do both": (
        [
            {"options": LETTERS, "answer": "A"},
            {"options": ANIMALS, "answer": "A"},
            {"options": ANIMALS, "answer": "dog"},
        ],
        "other rows do both",
    ),
    "from 0 and from 1": (
        [{"options": ANIMALS, "answer": n} for n in (0, 4, 2)],
        "some rows count from 0, and others from 1",
    ),
    "no option": ([{"options": ANIMALS, "answer": "horse"}], "'horse' names none of its options"),
    "out of range": ([{"options": ANIMALS, "answer": 9}], "9 names none of its options"),
    "unlabelled": ([{"options": ANIMALS, "answer": -1}], "-1 names none of its options"),
    "true of animals": ([{"options": ANIMALS, "answer": True}], "True names none"),
    "the same text twice": ([{"options": ["cat", "Cat", "dog"], "answer": "cat"}], "or several"),
    "no choice": ([{"options": ["cat"], "answer": "cat"}], "it has one option, 'cat'"),
    "neither options nor letter": ([{"answer": "cat"}], "no options, and its answer 'cat' is no"),
    "divided humans": (
        [{"options": ANIMALS, "answers": ["dog", "dog", "cat", "cat"]}],
        "divided evenly",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decided_is_named(scorer: Scorer, name: str) -> None:
    rows, why = REFUSED[name]
    plain = {"options": {"A": "x", "B": "y"}, "answer": "A"}
    scorer.scores("choice", [plain, *rows], ["A"] * (1 + len(rows)))
    assert why in scorer.report["skipped"]["q1"]


def test_one_row_against_a_hundred_is_the_mistake(scorer: Scorer) -> None:
    rows = [{"options": ANIMALS, "answer": n % 4} for n in range(800)]
    rows.append({"options": ANIMALS, "answer": 4})
    said = [LETTER for LETTER in "ABCD" * 200] + ["D"]
    assert scorer.scores("choice", rows, said) == [1.0] * 800
    assert "the data set counts them from 0" in scorer.report["skipped"]["q800"]
    assert "number from 0" in scorer.report["reading"]["options"]


def test_how_options_were_read_does_not_depend_on_the_limit(run: Run, tmp_path: Path) -> None:
    rows = [{"id": n, "question": "?", "options": ANIMALS, "answer": n} for n in (1, 2, 3, 4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    file = write(tmp_path / "a.jsonl", [{"id": 1, "answer": "A"}])
    arguments = ["--data", tmp_path / "rows.json", "--answers", file, "--metric", "choice"]
    result = run("eval", *arguments, "--limit", 1, "--json", "-o", tmp_path / "out")
    assert json.loads(result.stdout)["models"][0]["score"]["mean"] == 1


def pope(answer: str) -> str:
    """POPE's evaluate.py, restated: the first sentence, its words parted by blanks."""
    first = answer.partition(".")[0] if "." in answer else answer
    return "no" if {"No", "not", "no"} & set(first.replace(",", "").split(" ")) else "yes"


YES_NO = (
    "Yes", "No", "yes, there is a dog.", "No, there is no dog.", "There is a dog. No cat though.",
    "There is not a dog in the image.", "There is no dog", "Yes. It is not small.",
    "Not sure", "The notice says so", "A dog", "yes there is", "no",
)  # fmt: skip


def test_exact_on_yes_no_data_is_popes_rule(scorer: Scorer) -> None:
    words = [*YES_NO, "NO", "No!", "No\nThere is none."]
    for label in ("yes", "no"):
        other = "no" if label == "yes" else "yes"
        rows = [{"answer": label.capitalize()} for _ in words] + [{"answer": other}]
        scores = scorer.scores("exact", rows, [*words, other])
        read = [pope(text) for text in YES_NO] + ["no"] * 3 + [other]
        read[words.index("Not sure")] = "no"  # POPE misses the capital
        assert scores[:-1] == [float(each == label) for each in read[:-1]]
    assert "all references are yes or no" in scorer.report["reading"]["yes_no"]
    assert scorer.report["models"][0]["unclear"] == 3


def test_yes_no_data_has_popes_numbers(scorer: Scorer) -> None:
    wanted = ["yes"] * 5 + ["no"] * 5
    said = ["Yes", "yes.", "Yes, it is.", "No", "There is not", "No", "no dog", "Yes", "A", "no"]
    rows = [{"answer": label, "category": "popular"} for label in wanted]
    scorer.scores("exact", rows, said)
    (model,) = scorer.report["models"]
    tp, fp, tn, fn = 3, 2, 3, 2
    numbers = {
        "accuracy": (tp + tn) / 10,
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "yes_share": 0.5,
    }
    assert model["yes_no"] == pytest.approx(numbers)
    assert model["yes_no_by_type"] == {"popular": model["yes_no"]}
    assert model["score"]["mean"] == model["yes_no"]["accuracy"]
    scorer.scores("exact", [{"answer": "no"}], ["no"])
    model = scorer.report["models"][0]
    assert (model["yes_no"]["precision"], model["yes_no"]["f1"]) == (None, None)


def test_one_other_reference_ends_the_yes_no_rule(scorer: Scorer) -> None:
    rows = [{"answer": "yes"}, {"answer": "no"}, {"answer": "red"}]
    assert scorer.scores("exact", rows, ["Yes, it is.", "no", "red"]) == [0, 1, 1]
    assert scorer.report["reading"] == {} and scorer.report["models"][0]["yes_no"] is None


def test_jsons_true_and_false_are_yes_and_no(scorer: Scorer) -> None:
    rows = [{"answer": True}, {"answer": False}]
    assert scorer.scores("exact", rows, ["Yes, there is.", "No."]) == [1, 1]


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("red", " **Red**. ", 1), ("-5", "5", 0), ("-5", "\u22125", 1), ("5%", "5", 0),
        ("0.5", ".5", 0),
        (".5", "5", 0), ("C#", "C", 0), ("$5", "5", 0), ("3.5", "35", 0), ("a cat", "cat", 0),
    ],
)  # fmt: skip
def test_exact_keeps_signs(scorer: Scorer, reference: str, answer: str, score: float) -> None:
    assert scorer.scores("exact", [{"answer": reference}], [answer]) == [score]


# VQA v2's evaluation, stated anew from its description: normalise when the humans differ.
MARKS = ';/[]"{}()=+\\_-><@`,?!'
SPELT = {"dont": "don't", "isnt": "isn't", "cant": "can't", "whats": "what's"}
DIGITS = dict(
    zip(
        "zero one two three four five six seven eight nine ten".split(),
        map(str, range(11)),
        strict=True,
    )
)


def official(answer: str, humans: list[str]) -> float:
    def clean(text: str) -> str:
        text = text.replace("\n", " ").replace("\t", " ").strip()
        comma = re.search(r"\d,\d", text)
        out = text
        for mark in MARKS:
            beside = f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if beside or comma else " ")
        out = re.sub(r"\.(?!\d)", "", out)
        words = [{"none": "0", **DIGITS}.get(word, word) for word in out.lower().split()]
        return " ".join(SPELT.get(w, w) for w in words if w not in ("a", "an", "the"))

    answer, humans = clean(answer), [clean(human) for human in humans]
    each = []
    for left_out in range(len(humans)):
        others = humans[:left_out] + humans[left_out + 1 :]
        each.append(min(1.0, sum(other == answer for other in others) / 3))
    return sum(each) / len(each)


def test_vqa_is_the_challenges_evaluation(scorer: Scorer) -> None:
    draw = random.Random(0)
    texts = [
        "two", "2", "Two dogs", "a dog", "the dog.", "dogs", "dont know", "don't know", "red/blue",
        "red, blue", "1,000", "1000", "3.5", "none", "0", "t-shirt", "t shirt", "What's up?",
        "whats up", "yes", "Yes.", "no", "left (top)", "left top", "u.s.", "us", "10", "ten",
    ]  # fmt: skip
    rows, said = [], []
    for _ in range(300):
        pool = draw.sample(texts, 4)
        humans = draw.choices(pool, k=10)
        rows.append({"answers": [{"answer": text} for text in humans]})
        said.append(draw.choice(pool))
    found = scorer.scores("vqa", rows, said)
    wanted = [
        official(text, [human["answer"] for human in row["answers"]])
        for row, text in zip(rows, said, strict=True)
    ]
    assert found == pytest.approx(wanted)
    assert len({round(score, 3) for score in found}) > 4


def test_files_are_models_and_are_compared(run: Run, tmp_path: Path) -> None:
    rows = [{"id": n, "question": "?", "answer": "a"} for n in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    one = write(
        tmp_path / "one.jsonl", [{"id": n, "answer": "a" if n < 3 else "b"} for n in range(6)]
    )
    two = write(tmp_path / "two.jsonl", [{"question_id": n, "text": "A."} for n in range(6)])
    arguments = ["--data", tmp_path / "rows.json", "--answers", one, "--answers", two]
    result = run("eval", *arguments, "-o", tmp_path / "out", "--json")
    models = json.loads(result.stdout)["models"]
    assert [model["model"] for model in models] == [str(one), str(two)]
    assert [model["score"]["mean"] for model in models] == [0.5, 1]
    assert models[1]["against_first"]["difference"] == 0.5
    assert (tmp_path / "out" / "report.png").stat().st_size > 1000
    # An evaluation's own answers are read again, to the same scores.
    again = ["--answers", tmp_path / "out" / "answers.jsonl", "-o", tmp_path / "again", "--json"]
    repeated = json.loads(run("eval", "--data", tmp_path / "rows.json", *again).stdout)["models"]
    assert [model["score"] for model in repeated] == [model["score"] for model in models]


@pytest.mark.parametrize(
    "line",
    [
        {"id": "q", "answer": "red"},
        {"question_id": "q", "prompt": "?", "text": "red", "answer_id": "x", "model_id": "m"},
        {"id": "q", "response": "red"},
        {"index": "q", "question": "?", "answer": "blue", "prediction": "red"},
        {"id": "q", "generated_text": ["red"]},
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_the_files_that_engines_write(
    run: Run, tmp_path: Path, line: Mapping[str, Any], whole: bool
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "q", "question": "?", "answer": "red"}]))
    file = tmp_path / ("a.json" if whole else "a.jsonl")
    file.write_text(json.dumps([line] if whole else line))
    arguments = ["--data", tmp_path / "rows.json", "--answers", file, "-o", tmp_path / "out"]
    result = run("eval", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["models"][0]["score"]["mean"] == 1


def test_ids_that_do_not_fit_are_counted_and_named(run: Run, tmp_path: Path) -> None:
    rows = [{"id": f"q{n}", "question": "?", "answer": "a"} for n in range(5)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    lines = [
        ("q0", "a"),
        ("q1", "a"),
        ("q1", "b"),
        ("q2", "a"),
        ("q2", "a"),
        ("x", "a"),
        ("q3", None),
    ]
    file = write(tmp_path / "a.jsonl", [{"id": name, "answer": text} for name, text in lines])
    arguments = ["--data", tmp_path / "rows.json", "--answers", file, "-o", tmp_path / "out"]
    result = run("eval", *arguments)
    assert result.exit_code == 0, result.stderr
    for words in (
        "exact on 2 rows",
        "3 ids have no answer and are not scored: q1, q3, q4",
        "2 ids have several answers: q1, q2",
        "1 id are in no row of the data: x",
    ):
        assert words in result.stdout, words
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["models"][0]["matching"] == {
        "missing": 3,
        "missing_ids": ["q1", "q3", "q4"],
        "repeated": 2,
        "repeated_ids": ["q1", "q2"],
        "unknown": 1,
        "unknown_ids": ["x"],
    }


@pytest.mark.parametrize(
    ("lines", "more", "words"),
    [
        ([{"id": "q", "colour": "red"}], [], "its keys are id, colour"),
        ([{"name": "q", "answer": "red"}], [], "its keys are name, answer"),
        ([{"id": "q", "answer": {"text": "red"}}], [], "'answer' is not a text"),
        (["red"], [], "entry 1 is red"),
        ([{"id": "other", "answer": "red"}], [], "no row was answered"),
        ([{"id": "q", "answer": "red"}], ["--metric", "loss"], "loss needs a model"),
        ([{"id": "q", "answer": "red"}], ["--metric", "bleu"], "bleu is unknown"),
        ([{"id": "q", "answer": "red"}], ["--data", "twice.json"], "have the id of another: q"),
        (
            [{"id": "q", "answer": "red", "model_output": "blue"}],
            [],
            "both 'answer' and 'model_output'",
        ),
        ([{"id": "q", "text": "?", "Predicted": "blue"}], [], "both 'text' and 'Predicted'"),
        ([{"id": "q", "answer": "red"}], ["--answers", "none.jsonl"], "no file of answers none"),
        ([{"id": "q", "answer": "red"}], ["--dtype", "float32"], "not --answers"),
    ],
)
def test_answers_that_cannot_be_meant_are_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Any, more: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"id": "q", "question": "?", "answer": "red"}
    Path("rows.json").write_text(json.dumps([row]))
    Path("twice.json").write_text(json.dumps([row, row]))
    write(Path("a.jsonl"), lines)
    result = run("eval", "--data", "rows.json", "--answers", "a.jsonl", "-o", "out", *more)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.stderr.split()) and "Traceback" not in result.stderr
    assert not Path("out", "report.json").exists()


def test_no_torch_is_needed(spawn: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"id": 1, "question": "?", "answer": "red"}]))
    file = write(tmp_path / "a.jsonl", [{"id": 1, "answer": "red"}])
    code = (
        "import sys\nfrom dcsurgery.cli.main import main\ntry:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    arguments = ["eval", "--data", tmp_path / "rows.json", "--answers", file]
    done = spawn(*arguments, "-o", tmp_path / "out", code=code)
    assert done.returncode == 0, done.stderr
