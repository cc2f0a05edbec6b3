"""`dcsurgery recipe data`: is everything there that a recipe reads?"""

from __future__ import annotations

from pathlib import Path

from dcsurgery.cli.options import AsJson, Changes, DataDir, RecipeName
from dcsurgery.cli.output import Output

MISSING = 3


def data(
    name: RecipeName,
    changes: Changes = None,
    data_dir: DataDir = Path("."),
    as_json: AsJson = False,
) -> int:
    """Count the rows and pictures that a recipe reads; say what to fetch and where it is.

    Nothing is downloaded. Exits with 3 when a step could not run.
    """
    from dcsurgery.recipes.data_check import check_data
    from dcsurgery.recipes.runner import read_source

    out = Output(as_json=as_json)
    source = read_source(name, tuple(changes or ()))
    with out.working(f"counting rows and pictures in {data_dir}"):
        # A recipe that always runs as --smoke makes its data itself.
        found = check_data(source.recipe, data_dir, steps=() if source.smoke else None)
    out.result(found)
    return MISSING if found.problems else 0
