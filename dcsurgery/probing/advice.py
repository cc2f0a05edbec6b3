"""From gains to advice: which states have evidence, which belong together, and whether to operate.

What does not beat the null controls is no evidence, whatever its own interval says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

from dcsurgery.anatomy import Anatomy
from dcsurgery.connectors import make_layout
from dcsurgery.connectors.request import Connector
from dcsurgery.errors import PlanError
from dcsurgery.evaluation.eval_report import Score
from dcsurgery.features import FeatureBlock
from dcsurgery.probing.gains import Gains, Scored
from dcsurgery.probing.listen import Blocks
from dcsurgery.probing.probe_report import Null, SetGain, StateGain
from dcsurgery.probing.slopes import Array, Candidate
from dcsurgery.surgery.probed_layers import Recommended

# States that are also probed with another picture's values.
SHUFFLED = 4
# The defaults that a choice of states is compared with.
DEFAULTS = ("dci", "sci")
# About the standard errors at which the best of many states stands out from chance.
STANDS_OUT = 3.0
# In parts of the smallest gain that stands out. Only what the regression leaves of known features
# can be sure and yet so small.
NEGLIGIBLE = 0.1


@dataclass(frozen=True)
class Candidates:
    """What is probed in a model: single states, some of them shuffled, and connectors' defaults."""

    anatomy: Anatomy

    @cached_property
    def states(self) -> range:
        """Every state that all of the family's forms can name."""
        return range(self.anatomy.first_state, self.anatomy.tower.depth + 1)

    @cached_property
    def new(self) -> list[int]:
        """The states that the projector does not read today."""
        return [state for state in self.states if state not in self.anatomy.feature_layers]

    @cached_property
    def shuffled(self) -> list[int]:
        """Some of the new states, from shallow to deep."""
        count = min(SHUFFLED, len(self.new))
        return [self.new[at * len(self.new) // count] for at in range(count)]

    @cached_property
    def defaults(self) -> dict[str, Blocks]:
        """The blocks of the connectors that fit the model."""
        found = {}
        for kind in DEFAULTS:
            try:
                found[kind] = make_layout(self.anatomy, Connector.of(kind)).blocks
            except PlanError:  # too few states
                continue
        return found

    @cached_property
    def all(self) -> list[Candidate]:
        """Everything that is probed, each once."""
        single = [FeatureBlock((state,)) for state in self.states]
        means = [block for blocks in self.defaults.values() for block in blocks]
        return [
            *(Candidate(block) for block in dict.fromkeys([*single, *means])),
            *(Candidate(FeatureBlock((state,)), True) for state in self.shuffled),
        ]

    def place(self, *layers: int, shuffled: bool = False) -> int:
        """Return where a block is among all."""
        return self.all.index(Candidate(FeatureBlock(layers), shuffled))


@dataclass(frozen=True)
class Advice:
    """The report's fields that gains decide; see ProbeReport."""

    gains: Gains
    candidates: Candidates
    installed: Blocks

    @cached_property
    def scored(self) -> list[Scored]:
        """The gain of every candidate alone."""
        return self.gains.scores([self.gains.rows([at]) for at in range(len(self.candidates.all))])

    @cached_property
    def null(self) -> Null:
        """The controls and the largest gain among them."""
        feature = [s for s in self.candidates.anatomy.feature_layers if s in self.candidates.states]
        again = [self._state(state) for state in feature]
        shuffled = [self._state(state, shuffled=True) for state in self.candidates.shuffled]
        found = (item.gain.mean for item in (*again, *shuffled))
        floor = max([self.smallest * NEGLIGIBLE, *found])
        return Null(floor=floor, feature=again, shuffled=shuffled)

    def _state(self, state: int, *, shuffled: bool = False, floor: float = inf) -> StateGain:
        found = self.scored[self.candidates.place(state, shuffled=shuffled)]
        evidence = found.gain.low > floor
        return StateGain(state=state, gain=found.gain, by_type=found.by_type, evidence=evidence)

    def fields(self) -> dict[str, Any]:
        """Return the fields of the report."""
        floor = self.null.floor
        places = {state: self.candidates.place(state) for state in self.candidates.new}
        found = self.gains.choose(list(places.values()), floor)
        states = sorted(state for state, place in places.items() if place in found)
        chosen = tuple(FeatureBlock((state,)) for state in states)
        sets = {"chosen": chosen} if chosen else {}
        sets |= self.candidates.defaults
        of_sets = {name: self._rows(blocks) for name, blocks in sets.items()}
        rows = self.gains.nested(list(places.values()), floor)
        # Defaults are no further chances: where no state has evidence, luck would pick one.
        for name in self.candidates.defaults if chosen else ():
            if self.gains.surely(of_sets[name] - rows):
                chosen, rows = sets[name], of_sets[name]
        expected, *scored = self.gains.scores([rows, *of_sets.values()])
        operate = bool(chosen) and expected.gain.low > floor
        kept = (*self.installed, *chosen) if operate else ()
        return {
            "states": [self._state(state, floor=floor) for state in places],
            "null": self.null,
            "sets": [_set(*pair, own.gain) for pair, own in zip(sets.items(), scored, strict=True)],
            "expected": expected.gain,
            "expected_by_type": expected.by_type,
            "smallest": self.smallest,
            "loss": self.gains.loss,
            "recommended": Recommended(
                operate=operate,
                layers=write_layers(kept) if operate else None,
                blocks=[list(block.layers) for block in kept],
            ),
            "verdict": self._verdict(operate, chosen, expected.gain),
        }

    @property
    def smallest(self) -> float:
        """About the smallest gain per answer token that stands out from chance on these rows.

        A slope that is z standard errors from zero over n pictures promises z^2 / 2n of a picture.
        """
        return STANDS_OUT**2 / 2 / float(self.gains.slopes.tokens.sum())

    def _rows(self, blocks: Blocks) -> Array:
        return self.gains.rows([self.candidates.place(*block.layers) for block in blocks])

    def _verdict(self, operate: bool, chosen: Blocks, gain: Score) -> str:
        if not operate:
            return (
                "do not operate: today's feature already holds it, as far as "
                f"{gain.rows:,} rows can tell: gains below about {self.smallest:.2g} nats per "
                "answer token would not show"
            )
        single = len(chosen) == 1 and len(chosen[0].layers) == 1
        return (
            f"operate: hidden state{'' if single else 's'} {write_layers(chosen)} should take "
            f"{gain.mean:.2g} nats [{gain.low:.2g}, {gain.high:.2g}] off each answer token's "
            f"{self.gains.loss:.3g}"
        )


def _set(name: str, blocks: Blocks, gain: Score) -> SetGain:
    layers = [list(block.layers) for block in blocks]
    return SetGain(name=name, layers=write_layers(blocks), blocks=layers, gain=gain)


def write_layers(blocks: Sequence[FeatureBlock]) -> str:
    """Return blocks as --layers takes them."""
    return ";".join(map(str, blocks))
