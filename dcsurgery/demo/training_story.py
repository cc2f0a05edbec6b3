"""The second half of the demo: the probe's advice, arms trained alike on every tower, compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

from dcsurgery.demo.arms import CHOSEN, STORY, find_arm
from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.figures import draw_blocks, draw_curves, draw_question
from dcsurgery.demo.outcome import Outcome, read_outcome
from dcsurgery.demo.tables import overall, start_lines, text_table, verdict
from dcsurgery.demo.worker import RUNS, WORK, Unit, Work, cores, do_units, run_workers
from dcsurgery.errors import VerificationError
from dcsurgery.surgery.export import export_checkpoint

Say = Callable[[str], None]
TRAINED = "tiny-llava-dci-trained"


def train_and_compare(
    work: Path, bases: Sequence[Path], exercise: Exercise, workers: int | None, say: Say
) -> Path:
    """Train every arm of every base, say and draw what came of it; return the trained model."""
    count = cores() if workers is None else workers
    numbers = cycle(range(max(1, count)))
    layers = _ask_probe(bases[0], exercise.probed_rows, say)
    arms = STORY if layers is None else (*STORY, CHOSEN.name)
    units = [
        Unit(tower=base.name, seed=index, arm=arm, worker=next(numbers), layers=layers)
        for index, base in enumerate(bases)
        for arm in arms
    ]
    say(f"\n# the same {exercise.steps} steps on every model, {len(arms) - 1} ways")
    for arm in arms:
        say(f"  {arm:9s} {find_arm(arm).title}")
    outcomes = run_units(work, Work(exercise=exercise, units=units), count, say)
    check_fairness(outcomes)
    say("  all ways began bit for bit as the base, and saw the same batches in the same")
    say("  order")
    _tell(work, outcomes, exercise, say)
    first = bases[0]
    _show_pictures(work, [item for item in outcomes if item.tower == first.name], exercise, say)
    trained = work / TRAINED
    export_checkpoint(work / RUNS / first.name / "retrofit" / "trained", trained)
    say(f"\n$ dcsurgery export {RUNS}/{first.name}/retrofit/trained -o {trained.name}")
    say("  a stock checkpoint, plain transformers loads it:")
    say(f'  AutoModelForImageTextToText.from_pretrained("{trained.name}")')
    return trained


def _ask_probe(base: Path, rows: int, say: Say) -> str | None:
    """Say what the probe expects of a base's states; return those it recommends, if any."""
    from dcsurgery.demo.probed import probe_base

    say(f"\n# what the probe says of {base.name} on {rows} questions, before any training")
    found = probe_base(base, rows)
    gains = "  ".join(f"{item.state}: {1000 * item.gain.mean:.1f}" for item in found["states"])
    say("  expected gain of each hidden state, nats per answer token x 1000:")
    say(f"  {gains}")
    for line in wrap(found["verdict"]):
        say(f"  {line}")
    layers: str | None = found["recommended"].layers
    return layers


def run_units(work: Path, told: Work, workers: int, say: Say) -> list[Outcome]:
    """Do all units, in this process for 0 workers, and return their outcomes in order."""
    (work / RUNS).mkdir(parents=True, exist_ok=True)
    (work / WORK).write_text(told.model_dump_json(indent=1), encoding="utf-8")
    if workers:
        run_workers(work, told, say)
    else:
        do_units(work, 0)
    found = [read_outcome(unit.folder(work)) for unit in told.units]
    return [item for item in found if item is not None]


def check_fairness(outcomes: Sequence[Outcome]) -> None:
    """Check that all arms of a tower saw the same, and began as they should.

    Raises VerificationError.
    """
    hint = "this is a bug in dcsurgery; please report it"
    for tower in dict.fromkeys(item.tower for item in outcomes):
        mine = [item for item in outcomes if item.tower == tower]
        if len({(item.data_sha256, item.steps) for item in mine if item.steps}) > 1:
            raise VerificationError(f"the arms of {tower} saw different data", hint=hint)
        for item in mine:
            if item.starts_as_base != (find_arm(item.arm).start != "random"):
                raise VerificationError(f"{item.arm} of {tower} started elsewhere", hint=hint)


def _tell(work: Path, outcomes: Sequence[Outcome], exercise: Exercise, say: Say) -> None:
    towers = len({item.tower for item in outcomes})
    questions = 10 * exercise.test_scenes
    say(f"\n# {questions} test questions per model, digits no model has seen; means of {towers}")
    for line in text_table(outcomes):
        say(line)
    say(f"  [95 % interval, Student's t over {towers} towers], * where it leaves zero out;")
    say("  of 10 types one star in 20 is chance")
    say("")
    told = verdict(outcomes)
    if any(item.arm == CHOSEN.name for item in outcomes):
        others = ("control", "retrofit")
        told += [overall(outcomes, "all", CHOSEN.name, other) for other in others]
    for line in told:
        for part in wrap(line):
            say(f"  {part}")
    say("\n# on the way (curves.png): where validation is lowest, against the base")
    for line in start_lines(outcomes):
        say(f"  {line}")
    draw_curves(outcomes, work / "curves.png")
    say("\n# what the new matrix uses (layers.png)")
    mine = [item for item in outcomes if item.arm == "retrofit"]
    for index, block in enumerate(mine[0].blocks):
        used = ", ".join(f"{item.used[index]:.0%}" for item in mine)
        say(f"  states {block}: adds {used} of the size of what the projector had")
    draw_blocks(outcomes, work / "layers.png")


def _show_pictures(work: Path, outcomes: Sequence[Outcome], exercise: Exercise, say: Say) -> None:
    """Count the questions that control and retrofit answer differently; show one of each kind."""
    from dcsurgery.demo.rows import exam_rows
    from dcsurgery.demo.words import VOCABULARY

    words = list(VOCABULARY)
    exam = exam_rows(exercise.test_seed, "test", exercise.test_scenes)
    old, new = (next(o for o in outcomes if o.arm == arm) for arm in ("control", "retrofit"))
    differ = [row for row in range(len(exam)) if old.answers[row] != new.answers[row]]
    kinds = {
        "won": [row for row in differ if new.right[row]],
        "lost": [row for row in differ if old.right[row]],
        "neither": [row for row in differ if not new.right[row] and not old.right[row]],
    }
    won, lost, neither = map(len, kinds.values())
    say(f"\n# {old.tower}: control and retrofit answer {len(differ)} questions differently:")
    say(f"  {won} won, {lost} lost, {neither} wrong both ways; one of each, drawn at random")
    (work / "pictures").mkdir()
    drawn = random.Random(exercise.test_seed)
    for kind, rows in kinds.items():
        if not rows:
            continue
        row = drawn.choice(rows)
        question = exam.questions[row]
        lines = [
            question.text,
            f"control: {words[old.answers[row]]}",
            f"retrofit: {words[new.answers[row]]}",
            f"truth: {question.answer}",
        ]
        path = work / "pictures" / f"{kind}.png"
        draw_question(exam.pictures[question.scene], lines, path)
        say(f"  pictures/{kind}.png  {question.text}")
        say(f"    {'   '.join(lines[1:])}")


def wrap(text: str, width: int = 76) -> list[str]:
    """Return a text as lines of at most `width` characters."""
    import textwrap

    return textwrap.wrap(text, width)
