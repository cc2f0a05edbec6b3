"""The whole story on a tiny LLaVA built here, offline: inspect, convert, verify, load, compare."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcsurgery.convert import Conversion, convert_checkpoint
from dcsurgery.errors import OutputExistsError, VerificationError
from dcsurgery.features import describe_layers
from dcsurgery.inspection import inspect_checkpoint
from dcsurgery.verification import Report, verify_checkpoint
from dcsurgery.verification.images import sample_photo

Say = Callable[[str], None]


def run_demo(work_dir: Path | None, say: Say) -> Path:
    """Run the demo in `work_dir` (a new temporary folder when None) and return the stock folder.

    `say` gets every line. Raises OutputExistsError when the folder is not empty, VerificationError
    when a check fails.
    """
    work = Path(tempfile.mkdtemp(prefix="dcsurgery-demo-")) if work_dir is None else work_dir
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise OutputExistsError(f"{work} is not empty", hint="choose another --work-dir")
    base, stock, delta = work / "tiny-llava", work / "tiny-llava-dci", work / "tiny-llava-dci-delta"
    say("A Dense Connector for a tiny LLaVA, without network. Every folder below is in")
    say(f"  {work}")
    _build(base, say)
    _inspect(base, say)
    _convert(base, stock, "stock", say)
    _verify(stock, say)
    _convert(base, delta, "delta", say)
    _verify(delta, say)
    _compare(base, stock, delta, say)
    say("\nYour own model is next:")
    say("  dcsurgery inspect llava-hf/llava-1.5-7b-hf")
    say("  dcsurgery convert llava-hf/llava-1.5-7b-hf -o llava-dci")
    return stock


def _build(base: Path, say: Say) -> None:
    from dcsurgery.tiny import write_tiny_llava

    say(f"\n# a model to operate on: {base.name}")
    write_tiny_llava(base, "clip", depth=24, image_size=32, shards=3)
    say("  llava-hf/llava-1.5-7b-hf in miniature: same files, same names, 24 vision")
    say("  blocks, random weights")


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


def _compare(base: Path, stock: Path, delta: Path, say: Say) -> None:
    """Ask all three models the same; then give the new matrix values, to show that it is wired."""
    import torch
    from transformers import AutoModelForImageTextToText

    from dcsurgery.loading import load_model

    say("\n# one photograph, one question, three models")
    models: dict[str, Any] = {
        "base": AutoModelForImageTextToText.from_pretrained(base),
        "stock": AutoModelForImageTextToText.from_pretrained(stock),
        "delta": load_model(delta),
    }
    inputs = _inputs(base)
    with torch.no_grad():
        logits = {name: model(**inputs).logits for name, model in models.items()}
        for name, loader in (("stock", "plain transformers"), ("delta", "dcsurgery.load_model")):
            worst = (logits[name] - logits["base"]).abs().max().item()
            verdict = (
                "bit for bit the base"
                if torch.equal(logits[name], logits["base"])
                else (f"the base to {worst:.1g}")
            )
            say(f"  {name}, loaded by {loader}: logits are {verdict}")
        matrix = models["delta"].dense_connector.weight
        matrix.normal_(0, 0.25, generator=torch.Generator().manual_seed(0))
        moved = (models["delta"](**inputs).logits - logits["base"]).abs().max().item()
    say(f"  random values in the new matrix move the logits by {moved:.2g}: the wire is real,")
    say("  and a short training is what fills it")


def _inputs(base: Path) -> dict[str, Any]:
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(base)
    question = [{"type": "image"}, {"type": "text", "text": "Who is this?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    with Image.open(sample_photo()) as photo:
        inputs = processor(images=photo.convert("RGB"), text=prompt, return_tensors="pt")
    return dict(inputs)
