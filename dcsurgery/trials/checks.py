"""What keeps a trial from being made, found before anything is trained or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dcsurgery.checkpoint.destination import check_output
from dcsurgery.checkpoint.model_ref import local_folder
from dcsurgery.connectors.request import Connector, Layers
from dcsurgery.data.tally import BadRows
from dcsurgery.errors import OutputExistsError, RequestError
from dcsurgery.evaluation.answers import check_folder
from dcsurgery.evaluation.metrics import check_metric
from dcsurgery.evaluation.questions import usable_rows
from dcsurgery.evaluation.trial_report import is_trial, read_trial
from dcsurgery.probing.probe import LEAST_ROWS
from dcsurgery.probing.probe_report import is_answer
from dcsurgery.recipes.stamps import FOLDER as STAMPS
from dcsurgery.recipes.steps import Say
from dcsurgery.surgery.plan_file import BaseRecord
from dcsurgery.training.settings import TrainingSettings
from dcsurgery.training.workspace import check_workspace
from dcsurgery.trials.chosen import PROBE_FILE
from dcsurgery.trials.page import is_page
from dcsurgery.trials.units import Asked, Unit, Workshop

REPORT_FILE, PAGE_FILE, PICTURE_FILE = "trial.json", "trial.html", "trial.png"
PROBE_ROWS = 500


def check_settings(settings: TrainingSettings | None) -> TrainingSettings:
    """Return a trial's settings, resolved. Raises RequestError for what leaves an arm nothing."""
    chosen = (settings or TrainingSettings()).resolved()
    if chosen.train == "connector":
        raise RequestError(
            "with --train connector the control would train nothing", hint="leave out --train"
        )
    if chosen.connector_lr == 0:
        raise RequestError(
            "with a rate of 0 the connector stays at zero", hint="leave out --connector-lr"
        )
    return chosen


def work_folder(model: str | Path, work_dir: str | Path | None) -> Path:
    """Return where a trial is made: NAME.trial where nothing is said."""
    return Path(work_dir or f"{Path(str(model)).resolve().name}.trial")


def check_choice(
    names: Sequence[str],
    connector: Connector | str | None,
    layers: Layers | None,
    *,
    probe_rows: int,
    heed_probe: bool,
    say: Say,
) -> None:
    """Raise RequestError for options of the chosen arm or of the probe that nothing would heed."""
    given = {"--connector": connector, "--layers": layers}
    said = [f"{name} {value}" for name, value in given.items() if value is not None]
    if said and "chosen" not in names:
        raise RequestError(
            f"{', '.join(said)} is said of the chosen arm, which is not tried",
            hint=f"add it: --arms {','.join(names)},chosen",
        )
    if heed_probe and (said or "chosen" not in names):
        raise RequestError(
            "--heed-probe is said of a probe, and none runs: it chooses states for the chosen arm",
            hint="leave it out, or leave out --layers and --connector and try the arm chosen",
        )
    if probe_rows < LEAST_ROWS:
        raise RequestError(
            f"--probe-rows {probe_rows} is too few", hint=f"use {LEAST_ROWS} or more"
        )
    if probe_rows != PROBE_ROWS and (said or "chosen" not in names):
        say(f"warning: --probe-rows {probe_rows} is not used: no probe runs")


def check_asked(asked: Asked, seeds: int) -> None:
    """Raise RequestError for what cannot be meant, and for a test without what metrics need."""
    check_metric(asked.metrics[0])
    if asked.eval_batch < 1:
        raise RequestError(f"--eval-batch {asked.eval_batch} is too small", hint="use 1 or more")
    if asked.test_images is not None and not asked.test_images.is_dir():
        raise RequestError(
            f"--test-images {asked.test_images} is not a folder", hint="name the pictures' folder"
        )
    if seeds < 1:
        raise RequestError(f"--seeds {seeds} is too few", hint="use 1 or more, better 3")
    for metric in asked.metrics:
        asked.evaluation(metric).check()
    same = asked.digests["data"] == asked.digests["test"]
    if same and asked.split == asked.test_split:
        raise RequestError(
            "the test is the training data: every model would look better than it is",
            hint="give rows of other pictures with --test, or --test-split",
        )
    for metric in asked.metrics:
        rows = asked.read_test()
        usable_rows(rows, metric, BadRows(len(rows), asked.settings.max_bad), limit=asked.limit)


def check_ours(work: Path) -> None:
    """Raise OutputExistsError where a file of ours would replace somebody else's."""
    ours = {PROBE_FILE: is_answer, REPORT_FILE: is_trial, PAGE_FILE: is_page}
    ours[PICTURE_FILE] = lambda path: (
        is_trial(path.with_name(REPORT_FILE)) or is_page(path.with_name(PAGE_FILE))
    )
    for name, known in ours.items():
        path = work / name
        if path.is_symlink() or (path.exists() and not (path.is_file() and known(path))):
            raise OutputExistsError(
                f"{path} exists, and no trial wrote it",
                hint="move it away, or choose another --work-dir",
            )


def check_outside(work: Path, model: Path) -> None:
    """Raise RequestError for a work folder that is in the model's or is it."""
    place, folder = work.resolve(), model.resolve()
    if folder in (place, *place.parents):
        raise RequestError(
            f"the work folder {work} would be inside the model {model}",
            hint="choose another place with --work-dir",
        )


def check_base(work: Path, base: BaseRecord, projector: Mapping[str, str]) -> None:
    """Raise OutputExistsError where a work folder holds the trial of another model."""
    try:
        found = read_trial(work / REPORT_FILE)
    except RequestError:  # none, or one of another version
        return
    ours, theirs = ((b.config_sha256, b.files, b.commit) for b in (base, found.base))
    same = ours == theirs and all(projector.get(k) == v for k, v in found.projector_sha256.items())
    folders = [Path(b.folder) for b in (base, found.base) if b.folder]
    # What was moved is the same model; a second one beside the first is not.
    if len(folders) == 2 and folders[1].is_dir():
        same = same and folders[0].samefile(folders[1])
    if not same:
        raise OutputExistsError(
            f"{work} is a trial of {found.model}, another model",
            hint="choose another --work-dir",
        )


def check_places(shop: Workshop, units: Sequence[Unit]) -> None:
    """Raise OutputExistsError or RequestError where a unit that is left cannot be written."""
    for unit in units:
        if shop.done(unit):
            continue
        for metric in shop.asked.metrics:
            check_folder(shop.answers(unit, metric))
        if unit.seed is None or shop.has(shop.steps(unit)[0]):
            continue
        folder = shop.work / unit.name
        model = local_folder(shop.asked.model, shop.asked.revision)
        check_output(folder, overwrite=True, sources=[model])
        # Where another process may be training there, its files come and go.
        if not (shop.work / STAMPS / f"{unit.name}.lock").exists():
            check_workspace(folder, resume=False, overwrite=True)
