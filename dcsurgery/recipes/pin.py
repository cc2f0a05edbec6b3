"""`recipe pin`: the commits that the Hub has today, written into a recipe."""

from __future__ import annotations

import copy
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dcsurgery.checkpoint.destination import check_output
from dcsurgery.checkpoint.hub import hub_errors
from dcsurgery.errors import CheckpointNotFoundError, OutputExistsError, RequestError
from dcsurgery.printing.sheet import Printed, Sheet
from dcsurgery.recipes import lockfile
from dcsurgery.recipes.catalog import change_fields, find_recipe, read_text, read_yaml
from dcsurgery.recipes.resolve import base_place, tower_places
from dcsurgery.recipes.schema import Recipe, parse_recipe

# Data sets of the Hub, and models of which a revision is named; pages of the Hub are neither.
_NAME = r"[\w-]+/[\w.-]*\w"
_AT = r"/(?:resolve|tree|blob|raw)/(?P<rev>[^/\s,;)]*[^/\s,;).])"
ADDRESS = re.compile(
    rf"(?P<site>https://(?:huggingface|hf)\.co/)(?:(?P<data>datasets/{_NAME})(?:{_AT})?"
    rf"|(?P<model>(?!datasets/|spaces/){_NAME}){_AT.replace('rev', 'own')})"
)
# The recipe of a command in a comment: a word as a shell reads it, quoted or not.
RUN = re.compile(r"""(dcsurgery recipe run) ((?:'[^']*'|"[^"]*"|\S)+)""")
OTHER = re.compile(r"https?://[^\s,;)]*[^\s,;).]")


@dataclass(frozen=True)
class Pinned(Printed):
    """Commits by repository (datasets/... for data sets); `left` says what was not pinned."""

    output: str
    commits: dict[str, str]
    left: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; keys only ever get added."""
        values = {"output": self.output, "commits": self.commits, "left": list(self.left)}
        return {"schema_version": 1, **values}

    def show(self, out: Sheet) -> None:
        """Put the commits on a sheet."""
        out.facts([*self.commits.items(), *(("not pinned", why) for why in self.left)])
        out.show(f"pinned: {self.output}", "bold green")


def pin_recipe(
    name_or_file: str,
    output: str | Path,
    *,
    changes: tuple[str, ...] = (),
    data_dir: str | Path = ".",
) -> Pinned:
    """Write a recipe with the commit of its model, and of each Hub address in its `needs`.

    A branch or tag that the recipe names is asked for its commit, else main. Raises RequestError
    for a recipe with nothing to pin, without network and for an output that cannot be written,
    OutputExistsError, CheckpointError for what the Hub does not have.
    """
    place, path = Path(output), find_recipe(name_or_file)
    values = read_yaml(path)
    if lockfile.is_lock(values):
        raise RequestError(f"{name_or_file} is a lock, which is pinned already", hint="run it")
    values = change_fields(values, changes)
    recipe = parse_recipe(values, name_or_file)
    if os.path.lexists(place):
        raise OutputExistsError(f"{place} exists", hint="choose another -o, or move it away")
    check_output(place, overwrite=False)
    _refuse(recipe)
    commits: dict[str, str] = {}
    found = copy.deepcopy(values)
    data, left = Path(data_dir), []
    if Path(base_place(recipe, data)).is_dir():
        left.append(f"{recipe.base.model} is a folder, which has no commits")
    else:
        found["base"]["revision"] = _commit(recipe.base.model, recipe.base.revision, commits)
    for tower in tower_places(recipe, data).values():
        left.append(f"the tower {tower}: recipes name no revision of towers; the lock has it")
    for name, text in recipe.needs.items():
        found["needs"][name] = ADDRESS.sub(lambda match: _address(match, commits), text)
        others = OTHER.findall(ADDRESS.sub("", text)) or [text] * (not ADDRESS.search(text))
        if others:
            left.append(f"{name}: no commit of the Hub: {', '.join(others)}")
    if not commits:
        raise RequestError(f"{name_or_file} names nothing on the Hub", hint="; ".join(left))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(_opening(path, place) + yaml.safe_dump(found, sort_keys=False, width=1000))
    return Pinned(str(place), commits, tuple(left))


def _refuse(recipe: Recipe) -> None:
    from huggingface_hub import constants

    if recipe.smoke.always:
        raise RequestError(f"{recipe.name} makes its own model", hint="there is nothing to pin")
    swept = next((key for key in recipe.sweep if key == "base" or key.startswith("base.")), None)
    if swept is not None:
        raise RequestError(
            f"{recipe.name} sweeps over {swept}, and one revision cannot be that of several models",
            hint="name revisions in the sweep: base: [{model: ..., revision: ...}]",
        )
    if constants.HF_HUB_OFFLINE:
        raise RequestError(
            "HF_HUB_OFFLINE is set, so the Hub may not be asked for its commits",
            hint="unset HF_HUB_OFFLINE and run it again",
        )


def _commit(repo: str, revision: str | None, commits: dict[str, str]) -> str:
    """Return the commit of a model, or of datasets/owner/name, asked for once, and note it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    name = repo if revision in (None, "main") else f"{repo} at {revision}"
    if name in commits:
        return commits[name]
    owned = repo.removeprefix("datasets/")
    ask = HfApi().model_info if owned == repo else HfApi().dataset_info
    with hub_errors(repo, revision):
        try:
            sha = ask(owned, revision=revision).sha
        except RepositoryNotFoundError:
            kind = "model" if owned == repo else "data set"
            raise CheckpointNotFoundError(
                f"there is no {kind} {owned} on the Hub, or this account may not see it",
                hint="correct it in the recipe, or log in: hf auth login",
            ) from None
    commits[name] = str(sha)
    return commits[name]


def _address(match: re.Match[str], commits: dict[str, str]) -> str:
    """Return an address at its commit: the page of a whole data set becomes that of its files."""
    revision = match["rev"] or match["own"]
    sha = _commit(match["data"] or match["model"], revision, commits)
    if revision is None:
        return f"{match[0]}/tree/{sha}"
    start = match.start("rev" if match["rev"] else "own") - match.start()
    return match[0][:start] + sha


def _opening(path: Path, place: Path) -> str:
    """Return the comment that a recipe opens with, its command that of the pinned file."""
    lines = []
    for line in read_text(path).splitlines():
        if not line.startswith("#"):
            break
        lines.append(RUN.sub(lambda found: f"{found[1]} {shlex.quote(str(place))}", line))
    return "".join(f"{line}\n" for line in lines)
