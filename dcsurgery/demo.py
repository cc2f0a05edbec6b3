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

    Raises OutputExistsError when the folder is not empty, VerificationError when a check fails.
    """
    work = Path(tempfile.mkdtemp(prefix="dcsurgery-demo-")) if work_dir is None else work_dir
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        raise OutputExistsError(f"{work} is not empty", hint="choose another --work-dir")
    base, stock, delta = work / "tiny-llava", work / "tiny-llava-dci", work / "tiny-llava-dci-delta"
    _build(base, say)
    _inspect(base, say)
    for step, (output, form) in enumerate(((stock, "stock"), (delta, "delta")), start=3):
        say(f"\n{step}. convert --form {form}")
        _convert(base, output, form, say)
        _verify(output, say)
    _load(base, stock, delta, say)
    say(f"\nThe upgraded model, loadable by plain transformers:\n  {stock}")
    say("Next, your own model:\n  dcsurgery convert llava-hf/llava-1.5-7b-hf -o llava-1.5-7b-dci")
    return stock


def _build(base: Path, say: Say) -> None:
    from dcsurgery.tiny import write_tiny_llava

    write_tiny_llava(base, "clip", depth=24, image_size=32, shards=3)
    say("1. A tiny LLaVA with the names and files of llava-hf/llava-1.5-7b-hf, random weights")
    say(f"   {base}")


def _inspect(base: Path, say: Say) -> None:
    found = inspect_checkpoint(base)
    tower, site = found.anatomy.tower, found.anatomy.projector.sites[0]
    say(f"\n2. inspect: {tower.depth} blocks of width {tower.width}, states 0..{tower.depth}")
    say(
        f"   the projector ({site.in_features} -> {site.out_features}) reads state "
        f"{found.anatomy.feature_layer} alone; the other {tower.depth} are thrown away"
    )


def _convert(base: Path, output: Path, form: str, say: Say) -> None:
    done: Conversion = convert_checkpoint(base, output, form=form)
    plan = done.plan
    groups = " and ".join(str(block) for block in plan.layout.blocks)
    say(f"   {done.seconds:.2f} s, {done.bytes_written:,} bytes written")
    say(f"   dci adds the means of states {groups}: {plan.new_parameters:,} new parameters")
    for record in plan.changed:
        say(f"   {record.name}: {record.base_shape} -> {record.shape}")
    for key, change in plan.config_changes.items():
        say(f"   config.json {key}: {_short(change['from'])} -> {_short(change['to'])}")
    say(f"   loads with: {plan.loader}")


def _short(value: Any) -> str:
    return f"[{describe_layers(value)}]" if isinstance(value, list) else str(value)


def _verify(output: Path, say: Say) -> None:
    report: Report = verify_checkpoint(output, logits=True)
    say("   verify:")
    for check in report.checks:
        mark = "ok    " if check.passed else "FAILED"
        say(f"     {mark} {check.name}: {check.measured} (limit: {check.limit})")
    if not report.passed:
        raise VerificationError(
            f"{output} did not verify", hint="this is a bug in dcsurgery; please report it"
        )


def _load(base: Path, stock: Path, delta: Path, say: Say) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from dcsurgery.loading import load_model

    models: dict[str, Any] = {
        "base": AutoModelForImageTextToText.from_pretrained(base),
        "stock": AutoModelForImageTextToText.from_pretrained(stock),
        "delta": load_model(delta),
    }
    inputs = _inputs(base)
    with torch.no_grad():
        logits = {name: model(**inputs).logits for name, model in models.items()}
        say("\n5. One photograph, one question, all three models (stock in plain transformers):")
        for name in ("stock", "delta"):
            worst = (logits[name] - logits["base"]).abs().max().item()
            equal = "bit-equal" if torch.equal(logits[name], logits["base"]) else "not bit-equal"
            say(f"   {name} against base: max logit difference {worst:.2g}, {equal}")
        matrix = models["delta"].dense_connector.weight
        matrix.normal_(0, 0.25, generator=torch.Generator().manual_seed(0))
        moved = (models["delta"](**inputs).logits - logits["base"]).abs().max().item()
    say(f"   with random values in the new matrix the logits move by {moved:.2g}: the wire is real")


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
