"""The arms of a trial: ways to spend the same training, and what each of them shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from dcsurgery.anatomy import Anatomy
from dcsurgery.checkpoint.contents import Checkpoint
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError, RequestError
from dcsurgery.evaluation.trial_report import RETROFITS
from dcsurgery.surgery.plan import make_plan
from dcsurgery.surgery.plan_file import SurgeryPlan
from dcsurgery.training.settings import TrainingSettings

# In the order in which they are trained and told.
TITLES = {
    "base": "before training",
    "control": "same training, no retrofit",
    "repeated": "same size, today's feature again",
    "dci": "dense connector (dci), its default states",
    "chosen": "the chosen states",
}


@dataclass(frozen=True)
class Arm:
    """An arm and the plan of its conversion, None for the base: it is not trained."""

    name: str
    connector: Connector | None = None
    plan: SurgeryPlan | None = None

    def settings(self, settings: TrainingSettings, seed: int) -> TrainingSettings:
        """Return how this arm is trained with a seed: the control leaves its new matrix at zero."""
        rate = 0.0 if self.name == "control" else settings.connector_lr
        return replace(settings, seed=seed, connector_lr=rate)


def check_arms(names: Sequence[str]) -> tuple[str, ...]:
    """Return the arms in order. Raises RequestError for one that there is not."""
    for name in names:
        if name not in TITLES:
            raise RequestError(f"there is no arm {name!r}", hint=f"arms: {', '.join(TITLES)}")
    if not names:
        raise RequestError("there is no arm to try", hint=f"arms: {', '.join(TITLES)}")
    return tuple(name for name in TITLES if name in names)


def build_arms(
    names: Sequence[str], checkpoint: Checkpoint, anatomy: Anatomy, chosen: Connector | None
) -> tuple[list[Arm], dict[str, str]]:
    """Return the arms that can be built, and why others cannot.

    `chosen` is what the user or the probe chose, None for nothing. Raises PlanError for a choice
    that cannot be installed.
    """
    made: dict[str, Arm] = {"base": Arm("base")}
    left: dict[str, str] = {}
    if chosen is not None:
        connector = replace(chosen, form="delta")
        made["chosen"] = Arm("chosen", connector, make_plan(checkpoint, connector))
    try:
        connector = Connector(form="delta")
        made["dci"] = Arm("dci", connector, make_plan(checkpoint, connector))
    except PlanError as error:
        left["dci"] = error.message
    if "chosen" in made and "dci" in made and "dci" in names:
        twin, own = made["dci"].plan, made["chosen"].plan
        if twin is not None and own is not None and twin.layout == own.layout:
            left["chosen"] = "it would be the dci arm again: these are dci's own states"
            del made["chosen"]
    judged = next((made[name] for name in RETROFITS if name in names and name in made), None)
    judged = judged or made.get("dci") or made.get("chosen")
    count = 1 if judged is None or judged.plan is None else len(judged.plan.layout.blocks)
    for name, blocks in (("control", 1), ("repeated", count)):
        try:
            if name == "repeated" and judged and judged.plan and judged.plan.layout.changes_tokens:
                raise PlanError(f"{judged.plan.kind} changes the image tokens", hint="")
            states = tuple((state,) for state in islice(cycle(anatomy.feature_layers), blocks))
            connector = Connector(layers=states, form="delta")
            made[name] = Arm(name, connector, make_plan(checkpoint, connector))
        except PlanError as error:
            left[name] = error.message
    return (
        [made[name] for name in TITLES if name in names and name in made],
        {name: why for name, why in left.items() if name in names},
    )
