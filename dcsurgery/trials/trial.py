"""try_model: is it worth it, for this model, on this data? Answered by training arms alike."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcsurgery.architectures import find_architecture
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.checkpoint.copying import replace_bytes
from dcsurgery.checkpoint.digests import digest
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.connectors.request import Connector, Layers
from dcsurgery.data.rows import data_digest
from dcsurgery.errors import PlanError
from dcsurgery.evaluation.trial_report import TrialReport
from dcsurgery.originals import open_model, told
from dcsurgery.probing.probe_report import write_file
from dcsurgery.recipes.steps import Say
from dcsurgery.surgery.plan import describe_base
from dcsurgery.surgery.plan_file import PLAN_FILE, BaseRecord, read_plan
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.trials.arms import TITLES, Arm, build_arms, check_arms
from dcsurgery.trials.checks import (
    PAGE_FILE,
    PICTURE_FILE,
    PROBE_ROWS,
    REPORT_FILE,
    check_asked,
    check_base,
    check_choice,
    check_ours,
    check_outside,
    check_places,
    check_settings,
    work_folder,
)
from dcsurgery.trials.chosen import asked_for, probe, recommended
from dcsurgery.trials.outcome import MEMORY, Outcome, make_report, rows_of_test, shared_pictures
from dcsurgery.trials.page import draw_gains, render_page
from dcsurgery.trials.plan import TrialPlan, make_trial_plan
from dcsurgery.trials.units import Asked, Unit, Workshop, held
from dcsurgery.trials.verdict import no_verdict

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def try_model(  # noqa: PLR0913 - one keyword per CLI option, by design
    model: str | Path,
    data: str | Path,
    test: str | Path,
    work_dir: str | Path | None = None,
    *,
    arms: Sequence[str] = tuple(TITLES),
    seeds: int = 3,
    metric: str = "exact",
    connector: Connector | str | None = None,
    layers: Layers | None = None,
    probe_rows: int = PROBE_ROWS,
    heed_probe: bool = False,
    settings: TrainingSettings | None = None,
    images: str | Path | None = None,
    test_images: str | Path | None = None,
    split: str = "train",
    test_split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_new_tokens: int = 32,
    eval_batch: int = 8,
    dtype: str = "auto",
    revision: str | None = None,
    towers: Mapping[str, str] | None = None,
    template: str | None = None,
    dry_run: bool = False,
    say: Say = lambda line: None,
) -> TrialReport | TrialPlan:
    """Tell whether a connector is worth it for a model on its user's own data, by trying it.

    `model` is a folder or Hub id without a connector, `data` and `test` are as finetune and
    evaluate take them. A probe of the data chooses states, unless `connector` or `layers` do; then
    every one of `arms` is trained on the same batches with `seeds` seeds from `settings.seed`
    upwards, and answers the test, by `metric` and by loss. The verdict is about the chosen states,
    else dci, against the control. `heed_probe` trains nothing where the probe advises against it.
    `work_dir` (NAME.trial when None) keeps all of it: what is done is not done again, and a second
    process with the same arguments takes other trainings. It gets trial.json, trial.html and
    trial.png. `dry_run` returns the plan, measured on a few rows, and writes nothing. `say` is
    called with news. Raises DcSurgeryError of the fitting kind.
    """
    asked = Asked(
        model=str(model),
        data=str(data),
        test=str(test),
        settings=check_settings(settings),
        metrics=tuple(dict.fromkeys((metric, "loss"))),
        images=None if images is None else Path(images),
        test_images=None if test_images is None else Path(test_images),
        split=split,
        test_split=split if test_split is None else test_split,
        columns=columns,
        revision=revision,
        towers=towers,
        template=template,
        limit=limit,
        max_new_tokens=max_new_tokens,
        eval_batch=eval_batch,
        dtype=dtype,
    )
    started = time.perf_counter()
    names = check_arms(arms)
    check_choice(names, connector, layers, probe_rows=probe_rows, heed_probe=heed_probe, say=say)
    check_asked(asked, seeds)
    work = work_folder(model, work_dir)
    check_ours(work)
    checkpoint = _open(asked, work)
    architecture = find_architecture(checkpoint.config)
    anatomy = architecture.dissect(checkpoint.config, checkpoint.tensors)
    projector = {n: digest(checkpoint.tensor_chunks(n)) for n in anatomy.projector.tensors}
    record = describe_base(checkpoint)
    shop = _shop(work, asked, checkpoint.ref.folder, record, projector, say)
    check_base(work, record, projector)
    wanted = asked_for(connector, layers, record)
    probed = probe(shop, probe_rows, dry_run) if wanted is None and "chosen" in names else None
    chosen, left = wanted or recommended(probed), {}
    heeded = heed_probe and probed is not None and not probed.recommended.operate
    if probed is not None and chosen is None:
        without = [name for name in names if name != "base"] if heeded else ["chosen"]
        left = dict.fromkeys(without, probed.verdict)
        names = ("base",) if heeded else tuple(name for name in names if name not in left)
    built, reasons = build_arms(names, checkpoint, anatomy, chosen)
    left |= reasons
    for name, why in left.items():
        say(f"{name} is left out: {why}")
    if not built:
        raise PlanError("no arm is left to try", hint="choose others: --arms control,dci")
    numbers = [asked.settings.seed + index for index in range(seeds)]
    units = list_units(built, numbers)
    check_places(shop, units)
    unknown = ["chosen"] * ("chosen" in names and chosen is None)
    silent = "" if heeded else no_verdict([*(arm.name for arm in built), *unknown])
    if silent:
        say(f"warning: {silent}")
    if dry_run:
        todo = [unit for unit in units if not shop.done(unit)]
        return replace(
            make_trial_plan(shop, built, numbers, todo, left, unknown), no_verdict=silent
        )
    do_units(shop, units)
    report = make_report(
        shop,
        Outcome(built, units, left, probed, heeded),
        checkpoint,
        base=record,
        architecture=anatomy.architecture,
        seconds=round(time.perf_counter() - started, 3),
    )
    _write(shop, report)
    return report


def _shop(
    work: Path,
    asked: Asked,
    folder: Path | None,
    record: BaseRecord,
    projector: Mapping[str, str],
    say: Say,
) -> Workshop:
    kept = record.model_dump(mode="json", exclude={"id", "folder", "revision", "template"})
    content: Any = None
    if folder is not None and not record.commit:
        # Nothing short stands for a folder's values: its digest reads both ends of every file.
        weights = [path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHTS]
        written = [(path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
        content = [data_digest(folder), projector, written]
    shared = shared_pictures(asked)
    if shared:
        say(f"warning: {MEMORY.format(shared)}")
    return Workshop(work, asked, {**kept, "content": content}, say, shared)


def _write(shop: Workshop, report: TrialReport) -> None:
    """Write trial.json, trial.png and trial.html, each whole."""
    write_file(shop.work / REPORT_FILE, report.model_dump_json(indent=2) + "\n")
    figure = draw_gains(report)
    if figure is not None:
        replace_bytes(shop.work / PICTURE_FILE, figure)
    rows = rows_of_test(shop.asked)
    examples = [item for found in report.differences for item in found.examples]
    orientation = shop.asked.settings.orientation
    pictures = {
        item.place: [image.open(orientation) for image in rows[item.place].images]
        for item in examples
    }
    write_file(shop.work / PAGE_FILE, render_page(report, pictures, figure))


def _open(asked: Asked, work: Path) -> Checkpoint:
    folder = local_folder(asked.model, asked.revision)
    check_outside(work, folder)
    if (folder / PLAN_FILE).is_file():
        plan = read_plan(folder)
        base = shlex.quote(plan.base.folder or plan.base.id)
        raise PlanError(
            f"{asked.model} has a {plan.kind} connector already",
            hint=f"try its base: dcsurgery trial {base} --data DATA --test TEST",
        )
    return open_model(asked.model, asked.revision, hints=told(**asked.hints))


def list_units(arms: Sequence[Arm], seeds: Sequence[int]) -> list[Unit]:
    """Return all trainings, seed by seed, the base first."""
    base = [Unit(arm, None) for arm in arms if arm.plan is None]
    return base + [Unit(arm, seed) for seed in seeds for arm in arms if arm.plan is not None]


def do_units(shop: Workshop, units: Sequence[Unit]) -> None:
    """Do what is left of all units; what another process is doing is waited for at the end."""
    busy: list[tuple[int, Unit]] = []
    for wait, turn in ((False, list(enumerate(units, start=1))), (True, busy)):
        for number, unit in turn:
            with held(shop.work, unit.name, wait=wait) as mine:
                if mine:
                    shop.carry_out(unit, f"[{number}/{len(units)}] {unit.name}")
                else:
                    busy.append((number, unit))
