"""The support table: which families there are, what they can take and what loads the result."""

from __future__ import annotations

from dataclasses import dataclass

from dcsurgery.architectures import Architecture, Form, available
from dcsurgery.connectors import KINDS
from dcsurgery.markdown import table
from dcsurgery.surgery.plan_file import DELTA_LOADER


@dataclass(frozen=True)
class Family:
    """One row: `pool` says whether --pool 2 fits, `loaders` what loads each output form."""

    name: str
    class_names: tuple[str, ...]
    checkpoints: tuple[str, ...]
    towers: str
    connectors: tuple[str, ...]
    pool: bool
    forms: tuple[Form, ...]
    loaders: dict[Form, str]


def supported_families() -> tuple[Family, ...]:
    """Return every supported family, by name."""
    return tuple(_family(found) for found in available())


def _family(found: Architecture) -> Family:
    tokens = found.token_connectors
    return Family(
        name=found.name,
        class_names=found.class_names,
        checkpoints=found.checkpoints,
        towers=found.towers,
        connectors=tuple(kind for kind in KINDS if kind != "sti" or kind in tokens),
        pool="pool" in tokens,
        forms=found.forms,
        loaders={
            form: found.stock_loader if form == "stock" else DELTA_LOADER for form in found.forms
        },
    )


def markdown_table() -> str:
    """Return the table in Markdown, as docs/families.md has it."""
    head = ("family", "example checkpoints", "tower", "connectors", "forms", "stock form loads in")
    rows = []
    for family in supported_families():
        connectors = ", ".join([*family.connectors, *(["--pool 2"] if family.pool else [])])
        cells = (
            family.name,
            ", ".join(family.checkpoints),
            family.towers,
            connectors,
            ", ".join(family.forms),
            family.loaders.get("stock", "").partition(",")[0],
        )
        rows.append(cells)
    return "\n".join(table(head, rows)) + "\n"
