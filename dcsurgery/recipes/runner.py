"""Run a recipe: steps with stamps, resumed after the last finished one; a report and a lock."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dcsurgery.errors import OutputExistsError, RequestError, VerificationError
from dcsurgery.recipes import launch as launching
from dcsurgery.recipes import lockfile, resolve, smoke
from dcsurgery.recipes.catalog import change_fields, find_recipe, read_yaml
from dcsurgery.recipes.launch import Launch, check_launch
from dcsurgery.recipes.preflight import check_start
from dcsurgery.recipes.recipe_report import write_report
from dcsurgery.recipes.schema import Recipe, parse_recipe
from dcsurgery.recipes.stamps import FOLDER as STAMPS
from dcsurgery.recipes.stamps import (
    Stamp,
    begin,
    describe_output,
    hash_inputs,
    is_done,
    is_ours,
    write_stamp,
)
from dcsurgery.recipes.steps import Place, Say, Step, build_steps, job_file

# What a run writes into its folder beside the outputs of its steps.
OWN = ("report.md", "report.json", lockfile.LOCK_FILE, "card.md", STAMPS, smoke.WORLD)
State = Literal["done", "resumed", "to do"]


@dataclass(frozen=True)
class StepState:
    """A step and what became of it: run now, done before, or still to do."""

    name: str
    state: State
    stamp: Stamp | None


@dataclass(frozen=True)
class RecipeRun:
    """A run: its recipe as it was carried out, its folder, its steps."""

    recipe: Recipe
    work: Path
    steps: tuple[StepState, ...]
    smoke: bool
    missing: tuple[str, ...] = ()

    @property
    def stamps(self) -> dict[str, Stamp]:
        """The stamps of the steps that are done, by name."""
        return {step.name: step.stamp for step in self.steps if step.stamp is not None}

    @property
    def finished(self) -> bool:
        """True when no step is left."""
        return all(step.state != "to do" for step in self.steps)


@dataclass(frozen=True)
class Source:
    """A recipe and, when it came out of a lock, that lock."""

    recipe: Recipe
    lock: dict[str, Any] | None
    smoke: bool


def read_source(name_or_file: str, changes: tuple[str, ...] = (), smoke: bool = False) -> Source:
    """Read a recipe or a lock. Raises RequestError; a lock takes no changes."""
    values = read_yaml(find_recipe(name_or_file))
    if not lockfile.is_lock(values):
        recipe = parse_recipe(change_fields(values, changes), name_or_file)
        return Source(recipe, None, smoke or recipe.smoke.always)
    if changes:
        raise RequestError("a lock replays exactly: --set cannot change it", hint="run the recipe")
    locked = lockfile.check_lock(values, name_or_file)
    return Source(parse_recipe(locked["recipe"], name_or_file), locked, locked["smoke"] or smoke)


def run_recipe(  # noqa: PLR0913 - one keyword per CLI option, by design
    name_or_file: str,
    *,
    changes: tuple[str, ...] = (),
    work_dir: str | Path | None = None,
    data_dir: str | Path = ".",
    until: str | None = None,
    smoke: bool = False,
    dry_run: bool = False,
    launch: Launch | None = None,
    say: Say = lambda line: None,
) -> RecipeRun:
    """Run a shipped recipe, a recipe file or a lock, and write report.md, report.json and the lock.

    Steps whose inputs have not changed since they finished are not run again. Paths of data are
    looked for in `data_dir`; everything is written below `work_dir` (NAME.run when None). `launch`
    says in how many processes trainings run; other machines than the first only take part in these,
    and wait in a work folder that all of them see. Raises
    DcSurgeryError of the step that failed; a second call goes on there.
    """
    source = read_source(name_or_file, changes, smoke)
    if source.recipe.sweep:
        raise RequestError(
            f"{source.recipe.name} is a sweep of several runs", hint="use run_sweep, or the CLI"
        )
    work = Path(work_dir or f"{source.recipe.name}.run")
    options: dict[str, Any] = {"until": until, "dry_run": dry_run, "launch": launch}
    return run_one(source, work, Path(data_dir), **options, say=say)


def run_one(  # noqa: PLR0913 - what run_recipe is told
    source: Source,
    work: Path,
    data: Path,
    *,
    until: str | None,
    dry_run: bool,
    say: Say,
    launch: Launch | None = None,
) -> RecipeRun:
    """Run one recipe without a sweep in its own folder; see run_recipe."""
    launch = launch or Launch()
    if source.smoke:
        data = work / smoke.WORLD
    recipe = _as_run(source, data, say)
    steps = chosen(build_steps(recipe), until)
    if source.lock is not None and not source.smoke:
        # A repetition is compared with what was published; it publishes nothing itself.
        steps = tuple(step for step in steps if step.name != "publish")
    check_launch(recipe, launch, recipe.name)
    if dry_run:
        return _look(recipe, steps, work, data, source)
    if launch.machine_rank:
        return _take_part(recipe, steps, (work, data), launch, source.smoke, say)
    check_work(work, steps, source.smoke)
    if source.smoke:
        smoke.build_world(recipe, data)
    resolve.require_data(recipe, steps, data)
    base, digests = resolve.pin_base(recipe, data), resolve.pin_data(steps, data)
    if source.lock is not None:
        resolve.require_same(source.lock, base, digests)
        for text in resolve.other_versions(source.lock):
            say(f"another version than the lock's: {text}")
    place = Place(
        work=work,
        base=resolve.base_place(recipe, data),
        revision=base["commit"],
        towers=resolve.tower_places(recipe, data),
        data=data,
        offline=source.smoke,
        say=say,
        launch=launch,
    )
    done = _done(steps, work, base, digests)
    check_start(recipe, [step for step in steps if step.name not in done], place)
    work.mkdir(parents=True, exist_ok=True)
    if not source.smoke:
        smoke.remove_world(work / smoke.WORLD)
    run = RecipeRun(recipe, work, _carry_out(steps, place, done, base, digests), source.smoke)
    _conclude(run, source, base, digests, complete=until is None)
    return run


def _as_run(source: Source, data: Path, say: Say) -> Recipe:
    """Return the recipe that is carried out: a small one, one at the commit of a lock, or as is."""
    if source.smoke:
        recipe = smoke.shrink(source.recipe)
        for line in smoke.overridden(source.recipe, recipe):
            say(line)
        return recipe
    if source.lock is not None:
        return resolve.pinned(source.recipe, source.lock, data)
    return source.recipe


def check_work(work: Path, steps: tuple[Step, ...], small: bool) -> None:
    """Refuse to replace what is not this run's to replace. Raises OutputExistsError."""
    hint = "move it away, or choose another --work-dir"
    whole = any(is_ours(work, step.name) for step in steps)
    outputs = {Path(step.output).parts[0]: step.name for step in steps if step.output}
    for name in [*OWN, *outputs]:
        place, step = work / name, outputs.get(name)
        ours = whole if step is None else is_ours(work, step)
        # A run that was refused before its first step leaves its world.
        ours = ours or (name == smoke.WORLD and smoke.wrote(place))
        if place.is_symlink() or (place.exists() and not ours):
            raise OutputExistsError(f"{place} exists, and no recipe wrote it", hint=hint)
    if small and whole and not (work / smoke.WORLD).is_dir():
        raise OutputExistsError(
            f"{work} holds a run with the whole model, which --smoke would replace", hint=hint
        )


def chosen(steps: tuple[Step, ...], until: str | None) -> tuple[Step, ...]:
    """Return the steps up to `until`: a step's name, or a kind (its last step). RequestError."""
    if until is None:
        return steps
    names = [step.name for step in steps]
    found = [i for i, name in enumerate(names) if name == until or name.split("-")[0] == until]
    if not found:
        raise RequestError(f"there is no step {until!r}", hint=f"steps: {', '.join(names)}")
    return steps[: found[-1] + 1]


def input_hash(
    step: Step, done: dict[str, Stamp], base: dict[str, Any], digests: dict[str, str]
) -> str:
    inputs = {**step.inputs, "data": {key: digests[name] for key, name in step.reads.items()}}
    if not step.after:
        inputs["base"] = base
    parents = [
        f"{done[name].inputs_sha256}{sorted(done[name].outputs.items())}" for name in step.after
    ]
    return hash_inputs(step.name, inputs, parents)


def _carry_out(
    steps: tuple[Step, ...],
    place: Place,
    done: dict[str, Stamp],
    base: dict[str, Any],
    digests: dict[str, str],
) -> tuple[StepState, ...]:
    stamps: dict[str, Stamp] = {}
    states = []
    for number, step in enumerate(steps, start=1):
        label = f"[{number}/{len(steps)}] {step.name}"
        wanted = input_hash(step, stamps, base, digests)
        # A step that is made again may come out as it was: what builds on it stays done.
        stamp = done.get(step.name) or is_done(place.work, step.name, wanted, step.output)
        if stamp is not None:
            place.say(f"{label}: done before")
            states.append(StepState(step.name, "resumed", stamp))
        else:
            place.say(f"{label} ...")
            stamp = _run_step(step, place, wanted)
            place.say(f"{label}: {stamp.seconds:.1f} s")
            states.append(StepState(step.name, "done", stamp))
        stamps[step.name] = stamp
    return tuple(states)


def _run_step(step: Step, place: Place, wanted: str) -> Stamp:
    started = time.perf_counter()
    goes_on = begin(place.work, step.name, wanted, step.unfinished)
    result = step.run(replace(place, goes_on=goes_on))
    stamp = Stamp(
        step.name,
        wanted,
        result,
        describe_output(place.work, step.output),
        round(time.perf_counter() - started, 2),
        resolve.installed(),
    )
    write_stamp(place.work, stamp)
    return stamp


def _look(
    recipe: Recipe, steps: tuple[Step, ...], work: Path, data: Path, source: Source
) -> RecipeRun:
    """Say what a run would do, without network, without writing: steps with a stamp are done."""
    absent = () if source.smoke else tuple(resolve.missing(recipe, steps, data))
    base = resolve.known_base(recipe, data, work)
    stamps: dict[str, Stamp] = {}
    if base is not None and not resolve.missing(recipe, steps, data):
        stamps = _done(steps, work, base, resolve.pin_data(steps, data))
    states = tuple(
        StepState(step.name, "resumed" if step.name in stamps else "to do", stamps.get(step.name))
        for step in steps
    )
    return RecipeRun(recipe, work, states, source.smoke, absent)


def _done(
    steps: tuple[Step, ...], work: Path, base: dict[str, Any], digests: dict[str, str]
) -> dict[str, Stamp]:
    """Return the stamps of the steps that need not run again, by name."""
    stamps: dict[str, Stamp] = {}
    for step in steps:
        if all(name in stamps for name in step.after):
            wanted = input_hash(step, stamps, base, digests)
            stamp = is_done(work, step.name, wanted, step.output)
            stamps |= {} if stamp is None else {step.name: stamp}
    return stamps


def _take_part(
    recipe: Recipe,
    steps: tuple[Step, ...],
    places: tuple[Path, Path],
    launch: Launch,
    small: bool,
    say: Say,
) -> RecipeRun:
    """Be one of the other machines: nothing but this machine's part of the trainings is done here.

    The first machine's stamps, in the same work folder, say how far it is.
    """
    work, data = places
    if small:
        launching.wait_for(lambda: smoke.is_built(recipe, data) or None)
    resolve.require_data(recipe, steps, data)
    base, digests = resolve.pin_base(recipe, data), resolve.pin_data(steps, data)
    stamps: dict[str, Stamp] = {}
    for step in steps:
        wanted = input_hash(step, stamps, base, digests)
        file, join = None, None
        if step.stage is not None and launch.wanted(step.stage):
            file = job_file(work, step.name)
            join = partial(launching.join, step.stage, launch, file, say)
        say(f"{step.name}: with the first machine")
        found = partial(is_done, work, step.name, wanted, step.output)
        stamps[step.name] = launching.wait_for(found, file, join)
    states = tuple(StepState(name, "done", stamp) for name, stamp in stamps.items())
    return RecipeRun(recipe, work, states, small)


def _conclude(
    run: RecipeRun,
    source: Source,
    base: dict[str, Any],
    digests: dict[str, str],
    *,
    complete: bool,
) -> None:
    write_report(run, base, digests)
    if not complete:
        if source.lock is None and any(step.state == "done" for step in run.steps):
            (run.work / lockfile.LOCK_FILE).unlink(missing_ok=True)  # of an earlier, other run
        return
    if source.lock is None:
        recipe = source.recipe.model_dump(mode="json")
        lockfile.write_lock(run.work, recipe, run.smoke, base, digests, run.stamps)
        return
    outputs = {name: stamp.outputs for name, stamp in run.stamps.items()}
    different = lockfile.differences(source.lock, outputs)
    if different:
        raise VerificationError(
            f"the replay made other weights than the lock: {', '.join(different)}",
            hint="compare the versions in the lock with report.json; GPUs do not repeat exactly",
        )


def plan_of(run: RecipeRun) -> dict[str, Any]:
    """Return a run as JSON values: its steps with what came of them, and the files it wrote."""
    files = {"report": "report.json", "lock": lockfile.LOCK_FILE} if run.finished else {}
    return {
        "schema_version": 1,
        "recipe": run.recipe.model_dump(mode="json"),
        "work_dir": str(run.work),
        "smoke": run.smoke,
        "missing": list(run.missing),
        "steps": [
            {"name": step.name, "state": step.state}
            | ({} if step.stamp is None else {"result": step.stamp.result})
            for step in run.steps
        ],
        **{key: str(run.work / name) for key, name in files.items() if (run.work / name).is_file()},
    }
