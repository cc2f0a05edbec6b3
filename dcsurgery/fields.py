"""Fields that explain and check themselves: one declaration for Python, recipes and command line.

A request is a frozen dataclass whose fields are Annotated[type, Told(...)] and whose __post_init__
calls check_fields. Its options are made of it by cli.options, its section of a recipe by pydantic.
Only the standard library is imported here: `--help` shows every field.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from math import inf, nan
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dcsurgery.errors import FieldError


@dataclass(frozen=True)
class Told:
    """What people are told about a field, and the bounds of a number, inclusive or not.

    `name` is the option's where that is not the field's; `read` makes a number of what is written
    in another way ("1%"); `hint` is what to do about a wrong value, where its type and bounds do
    not say it well enough.
    """

    help: str
    metavar: str = "N"
    least: float = -inf
    above: float = -inf
    below: float = inf
    name: str = ""
    read: Callable[[Any], float] | None = None
    hint: str = ""


@dataclass(frozen=True)
class Field:
    """A field of a request: the option's name, its type, whether None is one of its values.

    `kind` is object for a field of several types, which its request checks itself.
    """

    name: str
    kind: Any
    optional: bool
    told: Told

    @property
    def choices(self) -> tuple[Any, ...]:
        """The only values of a Literal; empty for other types."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()


def told_fields(request: type) -> dict[str, Field]:
    """Return the fields of a request that are told about, by their names in it."""
    hints = get_type_hints(request, include_extras=True)
    found = {}
    for field in fields(request):
        hint = hints[field.name]
        for told in getattr(hint, "__metadata__", ()):
            if isinstance(told, Told):
                plain = hint.__origin__
                union = () if get_origin(plain) is Literal else get_args(plain)
                kinds = [kind for kind in union or (plain,) if kind is not type(None)]
                name = told.name or field.name
                kind = kinds[0] if len(kinds) == 1 or told.read else object
                found[field.name] = Field(name, kind, type(None) in union, told)
    return found


def check_fields(request: object) -> None:
    """Bring every number of a request to its type, in place.

    Raises FieldError that names a field which cannot be meant, its value and what would do.
    """
    for name, field in told_fields(type(request)).items():
        value = getattr(request, name)
        if field.kind is not object and (value is not None or not field.optional):
            object.__setattr__(request, name, _fitting(field, value))


def _fitting(field: Field, value: Any) -> Any:
    choices, told = field.choices, field.told
    if choices:
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        raise FieldError(
            f"{field.name} {value!r} does not exist",
            hint=told.hint or f"choose {either(choices)}",
        )
    read, words = READERS[field.kind]
    try:
        number = (told.read or read)(value)
    except (TypeError, ValueError) as error:
        problem = f": {error}" if told.read else f" is not {words}"
        raise FieldError(f"{field.name} {value!r}{problem}", hint=_fits(field)) from None
    numeric = field.kind in (int, float)
    if numeric and not (told.least <= number < told.below and told.above < number):
        raise FieldError(f"{field.name} {value} is out of range", hint=_fits(field))
    return number


def percent(value: object) -> float:
    """Return a percentage, 0 to 100, from 1, 0.5, "1", "1%" or "0.5 %". Raises ValueError."""
    number = nan
    if isinstance(value, str):
        with suppress(ValueError):
            number = float(value.strip().removesuffix("%"))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if not 0 <= number <= 100:
        raise ValueError("a percentage from 0 to 100 is expected, such as 1, 0.5 or 5%")
    return number


def either(choices: Sequence[Any]) -> str:
    """Like "a, b or c"."""
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}" if most else last


def _fits(field: Field) -> str:
    told = field.told
    bounds = [
        f"{told.least:g} or more" * (told.least > -inf),
        f"more than {told.above:g}" * (told.above > -inf),
        f"less than {told.below:g}" * (told.below < inf),
    ]
    said = ", ".join(filter(None, bounds))
    return told.hint or f"give {READERS[field.kind][1]}" + f" of {said}" * bool(said)


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return read


def _number(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, bool):
            raise TypeError
        return read(value)

    return convert


READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (_number(operator.index), "a whole number"),
    float: (_number(float), "a number"),
    bool: (_exactly(bool), "true or false"),
    str: (_exactly(str), "text"),
}
