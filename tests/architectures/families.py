"""One tiny model of every family, from the families' contract tests."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import chain, groupby, zip_longest
from pathlib import Path

from dcsurgery.architectures import available
from tests.architectures import cases
from tests.architectures.contract import Wiring

FOLDER = Path(cases.__file__).parent


def contracts() -> Iterator[type[Wiring]]:
    """The contract tests of all families: each knows how to write a tiny model of its own."""
    for path in sorted(FOLDER.glob("test_*.py")):
        module = import_module(f"tests.architectures.{path.stem}")
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, Wiring):
                if found.__name__.startswith("Test") and found.__module__ == module.__name__:
                    yield found


def one_of_each(place: Path) -> dict[str, cases.Case]:
    """One tiny model of each family below a folder, by name, with its contract's first connector.

    Most test modules hold one family in several shapes, of which the first is enough.
    """
    found: dict[str, cases.Case] = {}
    by_module = groupby(contracts(), key=lambda contract: contract.__module__)
    rounds = zip_longest(*(list(group) for _, group in by_module))
    for number, contract in enumerate(filter(None, chain.from_iterable(rounds))):
        if len(found) == len(available()):
            break
        case = cases.make_case(contract.tiny(place / str(number), 1), contract.specs[0])
        found.setdefault(case.architecture.name, case)
    return found


def contract(path: str) -> type[Wiring]:
    """A contract test as `module.Class`, for tests that want its tiny model.

    Imported into a test's own namespace it would run there once more.
    """
    module, _, name = path.partition(".")
    found: type[Wiring] = getattr(import_module(f"tests.architectures.test_{module}"), name)
    return found
