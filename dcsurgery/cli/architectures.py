"""`dcsurgery architectures`: the support table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dcsurgery.cli.options import AsJson
from dcsurgery.cli.output import Output

EXAMPLES = (
    "dcsurgery architectures",
    "dcsurgery architectures --json",
)
Markdown = Annotated[
    bool,
    typer.Option("--markdown", help="Print the table of docs/families.md in Markdown."),
]


def architectures(as_json: AsJson = False, markdown: Markdown = False) -> None:
    """List the supported model families and what loads them."""
    from dcsurgery.surgery.plan_file import DELTA_LOADER
    from dcsurgery.surgery.support_table import markdown_table, supported_families

    out = Output(as_json=as_json)
    families = supported_families()
    if as_json:
        rows = [asdict(family) for family in families]
        out.data({"schema_version": 1, "architectures": rows})
        return
    if markdown:
        out.show(markdown_table().rstrip())
        return
    columns = ("family", "tower", "connectors", "forms", "example checkpoints")
    out.table(
        columns,
        [
            [
                family.name,
                family.towers,
                ", ".join([*family.connectors, *(["pool"] if family.pool else [])]),
                ", ".join(family.forms),
                "\n".join(family.checkpoints),
            ]
            for family in families
        ],
        "wlllw",
    )
    out.heading("what loads the result")
    stock = [(f"{found.name}, stock", found.loaders.get("stock", "")) for found in families]
    out.facts([row for row in stock if row[1]] + [("any, delta", f"{DELTA_LOADER}(OUT)")])
