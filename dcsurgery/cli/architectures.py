"""`dcsurgery architectures`: the support table."""

from __future__ import annotations

from typing import Any

from dcsurgery.cli.options import AsJson
from dcsurgery.cli.output import Output

EXAMPLES = (
    "dcsurgery architectures",
    "dcsurgery architectures --json",
)


def architectures(as_json: AsJson = False) -> None:
    """List the supported model families and what loads them."""
    from dcsurgery.architectures import available
    from dcsurgery.connectors import KINDS
    from dcsurgery.plan import DELTA_LOADER

    out = Output(as_json=as_json)
    families: list[dict[str, Any]] = [
        {
            "name": found.name,
            "class_names": list(found.class_names),
            "checkpoints": list(found.checkpoints),
            "towers": found.towers,
            "connectors": [
                kind for kind in KINDS if kind != "sti" or kind in found.token_connectors
            ],
            "forms": list(found.forms),
            "loaders": {
                form: found.stock_loader if form == "stock" else DELTA_LOADER
                for form in found.forms
            },
        }
        for found in available()
    ]
    if as_json:
        out.data({"schema_version": 1, "architectures": families})
        return
    columns = ("family", "tower", "connectors", "forms", "example checkpoints")
    keys = ("name", "towers", "connectors", "forms")
    rows = [
        [*(_cell(family[key]) for key in keys), "\n".join(family["checkpoints"])]
        for family in families
    ]
    out.table(columns, rows, "wlllw")
    out.heading("what loads the result")
    stock = [(f"{found.name}, stock", found.stock_loader) for found in available()]
    out.facts([row for row in stock if row[1]] + [("any, delta", f"{DELTA_LOADER}(OUT)")])


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
