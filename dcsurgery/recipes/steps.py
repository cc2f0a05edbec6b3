"""The row of a recipe as steps: what each reads, where it writes, what it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dcsurgery.errors import OutputExistsError, VerificationError
from dcsurgery.recipes import launch
from dcsurgery.recipes.launch import Launch
from dcsurgery.recipes.places import data_place
from dcsurgery.recipes.schema import Eval, Finetune, Recipe
from dcsurgery.recipes.stamps import FOLDER as STAMPS
from dcsurgery.surgery.plan_file import read_plan
from dcsurgery.training.settings import FREE

Say = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a run happens: its folder, the model it starts from and where data paths begin.

    `goes_on` when the step at hand was begun before with the same inputs, and did not end: what
    it left unfinished is still there. Of a step that begins anew it is cleared before.
    """

    work: Path
    base: str
    revision: str | None
    towers: dict[str, str]
    data: Path
    offline: bool
    say: Say
    launch: Launch = field(default_factory=Launch)
    goes_on: bool = False


@dataclass(frozen=True)
class Step:
    """One step: `inputs` are hashed, `after` are the steps it builds on, `output` is in the work
    folder, `unfinished` what a run that ends early leaves there. `run(place)` returns what it
    found, as JSON values. `reads` are the data paths whose content counts."""

    name: str
    inputs: dict[str, Any]
    after: tuple[str, ...]
    output: str | None
    run: Callable[[Place], dict[str, Any]]
    reads: dict[str, str] = field(default_factory=dict)
    unfinished: str | None = None
    stage: Finetune | None = None


def often(say: Say, every: float = 30.0) -> Say:
    """Return `say` for news that come all the time: it passes them on every so many seconds."""
    last = time.monotonic()

    def tell(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            say(f"  {line}")

    return tell


def build_steps(recipe: Recipe) -> tuple[Step, ...]:
    """Return the steps of a recipe in order. Nothing is read or run."""
    steps = [_convert(recipe)]
    _verify(recipe, steps)
    for number, stage in enumerate(recipe.finetune, start=1):
        steps.append(_finetune(stage, number, _last_model(steps)))
        _verify(recipe, steps)
    first, last = steps[0], _last_model(steps)
    steps += [_eval(item, first, last) for item in recipe.eval]
    if recipe.export is not None:
        steps.append(_export(recipe, last))
        if recipe.export.form == "stock":
            _verify(recipe, steps)
    if recipe.publish is not None and recipe.publish.repo is not None:
        reports = tuple(step for step in steps if step.name.startswith("eval-"))
        # The reference's form has no plan, and so nothing to write a card from.
        reference = recipe.export is not None and recipe.export.form == "reference"
        model = last if reference else _last_model(steps)
        steps.append(_publish(recipe, model, reports))
    return tuple(steps)


def _last_model(steps: list[Step]) -> Step:
    kinds = ("convert", "finetune", "export")
    return next(step for step in reversed(steps) if step.name.split("-")[0] in kinds)


def job_file(work: Path, step: str) -> Path:
    """Return where a training in several processes is written down while it runs."""
    return work / STAMPS / f"{step}.job"


def _folder(place: Place, step: Step) -> Path:
    return place.work / str(step.output)


def _convert(recipe: Recipe) -> Step:
    def run(place: Place) -> dict[str, Any]:
        from dcsurgery.surgery.convert import convert_checkpoint

        done = convert_checkpoint(
            place.base,
            place.work / "convert",
            connector=recipe.connector,
            revision=place.revision,
            towers=place.towers,
            overwrite=True,
        )
        plan = done.plan
        return {
            "form": plan.form,
            "new_parameters": plan.new_parameters,
            "image_tokens": plan.image_tokens,
            "loader": plan.loader,
        }

    return Step("convert", {"connector": asdict(recipe.connector)}, (), "convert", run)


def _verify(recipe: Recipe, steps: list[Step]) -> None:
    """Append the verification of the last model, if the recipe wants it."""
    options = recipe.verify
    if options is None:
        return
    model = _last_model(steps)
    report = f"verify-{model.name}.json"

    def run(place: Place) -> dict[str, Any]:
        import json

        from dcsurgery.verification import verify_checkpoint

        found = verify_checkpoint(
            _folder(place, model),
            images=[place.data / image for image in options.images],
            deep=options.deep,
            logits=options.logits,
            orientation=options.orientation,
        )
        (place.work / report).write_text(json.dumps(found.to_dict(), indent=2) + "\n")
        if not found.passed:
            failed = next(check for check in found.checks if not check.passed)
            raise VerificationError(
                f"{model.name} did not verify: {failed.name}: {failed.measured} {failed.detail}",
                hint=f"dcsurgery verify {_folder(place, model)}",
            )
        return {"checks": len(found.checks), "passed": True}

    name = f"verify-{model.name}"
    reads = {f"image {number}": image for number, image in enumerate(options.images)}
    steps.append(Step(name, options.model_dump(), (model.name,), report, run, reads))


def _finetune(stage: Finetune, number: int, model: Step) -> Step:
    name = f"finetune-{number}"
    settings = stage.settings()

    def run(place: Place) -> dict[str, Any]:
        from dcsurgery.training.finetune import finetune_connector

        output, tell = place.work / name, often(place.say)
        resume = place.goes_on and not output.exists()
        job: dict[str, Any] = {
            "model": str(_folder(place, model)),
            "data": data_place(stage.data, place.data),
            "output": str(output),
            "images": None if stage.images is None else str(place.data / stage.images),
            "split": stage.split,
            "columns": stage.columns,
            "resume": resume,
            "overwrite": not resume,
        }
        if place.launch.wanted(stage):
            given = {**job, "settings": asdict(settings)}
            launch.train(stage, place.launch, given, job_file(place.work, name), place.say)
            record = read_plan(output).training[-1]
            return {"training": record.model_dump(mode="json")}
        done = finetune_connector(
            **job,
            settings=settings,
            progress=lambda step, steps, words: tell(f"step {step} of {steps}, {words}"),
            tell=lambda line: place.say(f"  {line}"),
        )
        return {"training": done.record.model_dump(mode="json")}

    # The others may change while a training is under way, which goes on then.
    kept = {name: value for name, value in asdict(settings).items() if name not in FREE}
    where = {name: getattr(stage, name) for name in ("split", "images", "columns")}
    inputs = {"settings": kept, **where}
    reads, unfinished = {"data": stage.data}, f"{name}.training"
    return Step(name, inputs, (model.name,), name, run, reads, unfinished, stage)


def _eval(item: Eval, first: Step, last: Step) -> Step:
    name = f"eval-{item.name}"
    models = [first] if first is last else [first, last]
    settings = item.model_dump(exclude={"name", "data", "images", "split", "columns"})

    def run(place: Place) -> dict[str, Any]:
        from dcsurgery.evaluation.runner import EvalSettings, evaluate_checkpoints

        tell = often(place.say)
        evaluate = partial(
            evaluate_checkpoints,
            [_folder(place, step) for step in models],
            data_place(item.data, place.data),
            place.work / name,
            images=None if item.images is None else place.data / item.images,
            settings=EvalSettings(**settings),
            split=item.split,
            columns=item.columns,
            progress=lambda done, rows, model: tell(f"{Path(model).name}: row {done} of {rows}"),
        )
        try:
            report = evaluate(overwrite=not place.goes_on)
        except OutputExistsError:  # the models were written again, or the data has moved
            report = evaluate(overwrite=True)
        return {"eval": report.model_dump(mode="json")}

    after = tuple(step.name for step in models)
    report, reads = f"{name}/report.json", {"data": item.data}
    return Step(name, item.model_dump(), after, report, run, reads, f"{name}/answers.jsonl")


def _export(recipe: Recipe, model: Step) -> Step:
    options = recipe.export
    assert options is not None

    def run(place: Place) -> dict[str, Any]:
        from dcsurgery.surgery.export import export_checkpoint

        done = export_checkpoint(
            _folder(place, model),
            place.work / "export",
            form=options.form,
            keep_lora=options.keep_lora,
            overwrite=True,
        )
        return {"bytes_written": done.bytes_written}

    return Step("export", options.model_dump(), (model.name,), "export", run)


def _publish(recipe: Recipe, model: Step, reports: tuple[Step, ...]) -> Step:
    options = recipe.publish
    assert options is not None and options.repo is not None

    def run(place: Place) -> dict[str, Any]:
        evals = [place.work / str(step.output) for step in reports]
        if place.offline:
            return _card_only(place, model, str(options.repo), evals)
        from dcsurgery.publishing.push import push_checkpoint

        done = push_checkpoint(
            _folder(place, model),
            str(options.repo),
            private=options.private,
            revision=options.revision,
            create_pr=options.create_pr,
            evals=evals,
        )
        return {"url": done.url, "commit": done.commit}

    after = (model.name, *(step.name for step in reports))
    return Step("publish", options.model_dump(), after, None, run)


def _card_only(place: Place, model: Step, repo: str, evals: list[Path]) -> dict[str, Any]:
    """Write the card that would be published; nothing leaves this machine."""
    from dcsurgery.publishing.draft import draft_card

    report = place.work / f"verify-{model.name}.json"
    card = draft_card(
        _folder(place, model), repo, report=report if report.is_file() else None, evals=evals
    )
    (place.work / "card.md").write_text(card, encoding="utf-8")
    return {"card": "card.md", "sent": False}
