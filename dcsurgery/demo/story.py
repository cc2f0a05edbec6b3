"""The whole story, offline: inspect, convert, verify, train against honest controls, compare."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcsurgery.demo.checkpoints import embedded, unpack
from dcsurgery.demo.exercise import Exercise
from dcsurgery.demo.training_story import train_and_compare
from dcsurgery.errors import OutputExistsError, VerificationError
from dcsurgery.features import describe_layers
from dcsurgery.surgery.conversion import Conversion
from dcsurgery.surgery.convert import convert_checkpoint
from dcsurgery.surgery.inspection import inspect_checkpoint
from dcsurgery.verification import Report, verify_checkpoint

Say = Callable[[str], None]


def run_demo(
    work_dir: Path | None = None,
    say: Say = print,
    *,
    exercise: Exercise | None = None,
    workers: int | None = None,
) -> Path:
    """Run the demo in `work_dir` (a new temporary folder when None); return the trained model.

    That is a stock checkpoint: the first embedded LLaVA with a trained dense connector folded in.
    `say` gets every line. `exercise` are the sizes of the training, `workers` how many processes do
    it (0: this one; None: one per core). Raises OutputExistsError when the folder is not empty,
    VerificationError when a check fails.
    """
    work = Path(tempfile.mkdtemp(prefix="dcsurgery-demo-")) if work_dir is None else work_dir
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise OutputExistsError(f"{work} is not empty", hint="choose another --work-dir")
    say("A Dense Connector for tiny LLaVAs, without network. Every folder below is in")
    say(f"  {work}")
    bases = _unpack(work, say)
    base = bases[0]
    stock, delta = work / f"{base.name}-dci", work / f"{base.name}-dci-delta"
    _inspect(base, say)
    _convert(base, stock, "stock", say)
    _verify(stock, say)
    _convert(base, delta, "delta", say)
    _verify(delta, say)
    trained = train_and_compare(work, bases, exercise or Exercise(), workers, say)
    say("\nYour own model and rows are next: which states, is it worth it, then do it")
    say("  dcsurgery probe llava-hf/llava-1.5-7b-hf --data yours.json -o probe.json")
    say("  dcsurgery trial llava-hf/llava-1.5-7b-hf --data yours.json --test others.json")
    say("  dcsurgery finetune llava-hf/llava-1.5-7b-hf --connector dci \\")
    say("    --layers @probe.json --data yours.json -o tuned")
    return trained


def _unpack(work: Path, say: Say) -> list[Path]:
    """Write the embedded models and say what they are."""
    sources = embedded()
    say(f"\n# {len(sources)} models to operate on")
    bases = []
    for source in sources:
        number = source.name.rpartition("-")[2]
        bases.append(unpack(source, work / f"tiny-llava-{number}"))
        facts = json.loads((source / "pretraining.json").read_text(encoding="utf-8"))
        say(
            f"  {bases[-1].name}: its tower names {facts['tower']:.0%} of unseen digits, "
            f"it answers {facts['base']:.0%} rightly"
        )
    say("  real LLaVAs, trained by tests/demo/full/pretrain.py: the tower to name digits,")
    say("  nothing else; then answers about 1 to 3 coloured ones")
    return bases


def _inspect(base: Path, say: Say) -> None:
    say(f"\n$ dcsurgery inspect {base.name}")
    found = inspect_checkpoint(base)
    depth = found.anatomy.tower.depth
    say(f"  the vision tower makes hidden states 0..{depth}")
    say(f"  the projector reads state {found.anatomy.feature_layer} alone, {depth} are thrown away")


def _convert(base: Path, output: Path, form: str, say: Say) -> None:
    wanted = "" if form == "stock" else f" --form {form}"
    say(f"\n$ dcsurgery convert {base.name} -o {output.name}{wanted}")
    done: Conversion = convert_checkpoint(base, output, form=form)
    plan = done.plan
    say(f"  dci: the means of states {' and '.join(map(str, plan.layout.blocks))} join the feature")
    for record in plan.changed or plan.delta:
        before = f"{record.base_shape} -> " if record.base_shape else "new, "
        say(f"  {record.name}: {before}{record.shape}")
    for key, change in plan.config_changes.items():
        say(f"  config.json, {key}: {_short(change['from'])} -> {_short(change['to'])}")
    say(f"  {plan.new_parameters:,} new parameters, {done.bytes_written:,} bytes written")
    say(f"  loads with {plan.loader}")


def _short(value: Any) -> str:
    return f"[{describe_layers(value)}]" if isinstance(value, list) else str(value)


def _verify(output: Path, say: Say) -> None:
    say(f"\n$ dcsurgery verify {output.name} --logits")
    report: Report = verify_checkpoint(output, logits=True)
    for check in report.checks:
        say(f"  {'ok    ' if check.passed else 'FAILED'} {check.name}: {check.measured}")
        if check.detail:
            say(f"         {check.detail}")
    if not report.passed:
        raise VerificationError(
            f"{output} did not verify", hint="this is a bug in dcsurgery; please report it"
        )
