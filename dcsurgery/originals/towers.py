"""Vision towers that a checkpoint names instead of holding: found, opened, described."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dcsurgery.checkpoint import checks
from dcsurgery.checkpoint.contents import Checkpoint, open_checkpoint
from dcsurgery.checkpoint.hub import fetch_file
from dcsurgery.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    RequestError,
)
from dcsurgery.originals.adopted import TowerRecord

# (place, commit, weights) -> the tower's checkpoint.
Opener = Callable[[str, str | None, bool], Checkpoint]

PREPROCESSOR = "preprocessor_config.json"
# Folder names under which training scripts keep public towers -> the repository they come from.
PUBLIC = {
    name: f"{owner}/{name}"
    for owner, names in {
        "openai": (
            "clip-vit-large-patch14-336", "clip-vit-large-patch14", "clip-vit-base-patch16",
            "clip-vit-base-patch32",
        ),
        "google": (
            "siglip-so400m-patch14-384", "siglip-large-patch16-384", "siglip-base-patch16-384",
            "siglip-base-patch16-224",
        ),
    }.items()
    for name in names
}  # fmt: skip
_CONVNEXT = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
PUBLIC |= {
    "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": _CONVNEXT,
    "CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup": _CONVNEXT,
}
# Owners that are not Hub accounts but folders of a training machine.
_FOLDERS = {"ckpt", "ckpts", "checkpoint", "checkpoints", "model_zoo", "models", "pretrained"}


@dataclass
class Towers:
    """Where towers are: what the user says first, then what the checkpoint says.

    `given` are --tower NAME=PATH pairs: NAME is the config's value, its last part or its key, PATH
    a folder or a Hub id; `remembered` is where a plan found them, by the config's value. `home` is
    the model's folder, `weights` whether Hub towers are fetched. `found` fills with what was
    opened, by the config's value.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, str] = field(default_factory=dict)
    home: Path | None = None
    weights: bool = False
    found: dict[str, TowerRecord] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    def names(self, stated: str, key: str) -> bool:
        """Return whether the user or a plan says where a tower is."""
        named = {stated, PurePosixPath(stated).name, key}
        return bool(named & self.given.keys()) or stated in self.remembered

    def place(self, stated: str, key: str) -> str:
        """Return the folder or Hub id of the tower the config's `key` calls `stated`.

        Raises CheckpointNotFoundError for a path that neither exists nor is a known public tower.
        """
        last = PurePosixPath(stated).name
        for name in (stated, last, key):
            if name in self.given:
                self._used.add(name)
                return self.given[name]
        if stated in self.remembered:
            return self.remembered[stated]
        for folder in (Path(stated), *([self.home / stated] if self.home else [])):
            if folder.is_dir():
                return str(folder)
        parts = PurePosixPath(stated).parts
        is_path = len(parts) != 2 or stated[0] in "./~" or parts[0] in _FOLDERS
        if not is_path:
            return stated
        if last in PUBLIC:
            return PUBLIC[last]
        raise CheckpointNotFoundError(
            f"the vision tower {stated!r} ({key} in config.json) is not on this machine",
            hint=f"say where it is, a folder or a Hub id: --tower {last or key}=PATH",
        )

    def open(self, stated: str, key: str, opener: Opener | None = None) -> Checkpoint:
        """Open the tower's weights. Raises CheckpointError; the hint names --tower.

        `opener` does it for a tower that is not a Hugging Face checkpoint.
        """
        place = self.place(stated, key)
        with _naming(stated, place):
            opened = (opener or _open)(place, self._commit(stated), self.weights)
        self._note(stated, place, opened.ref.commit)
        return opened

    def describe(self, stated: str, key: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the tower's config.json and preprocessor_config.json, its weights unseen.

        The second is None where there is none. Raises CheckpointError; the hint names --tower.
        """
        place = self.place(stated, key)
        with _naming(stated, place):
            find = _finder(place, self._commit(stated))
            path = find("config.json")
            config = checks.parse_object(checks.read_text(path), "config.json")
        self._note(stated, place, None if Path(place).expanduser().is_dir() else path.parent.name)
        try:
            return config, checks.parse_object(checks.read_text(find(PREPROCESSOR)), PREPROCESSOR)
        except CheckpointNotFoundError:
            return config, None

    def require_used(self, named: Iterable[str], stated: list[str]) -> None:
        """Raise RequestError when the user named a tower that the checkpoint does not."""
        unused = sorted(set(named) - self._used)
        if unused:
            raise RequestError(
                f"--tower names {unused[0]!r}, which this checkpoint does not need",
                hint=f"it names {', '.join(map(repr, stated)) or 'no tower'}",
            )

    def _commit(self, stated: str) -> str | None:
        known = self.found.get(stated)
        return known.commit if known else None

    def _note(self, stated: str, place: str, commit: str | None) -> None:
        folder = Path(place).expanduser()
        where = str(folder.resolve()) if folder.is_dir() else place
        self.found[stated] = TowerRecord(where, commit)


def _open(place: str, commit: str | None, weights: bool) -> Checkpoint:
    return open_checkpoint(place, commit, weights=weights, pickles=_any)


def _any(_: dict[str, Any]) -> bool:
    return True


def _finder(place: str, commit: str | None) -> Callable[[str], Path]:
    """Return what gives the local path of a small file of a folder or a Hub model."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return lambda name: _existing(folder, name)
    return lambda name: fetch_file(place, commit, name)


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise CheckpointNotFoundError(
            f"{folder} has no {name}", hint="name the folder that transformers would load"
        )
    return checks.safe_path(folder, name)


@contextmanager
def _naming(stated: str, place: str) -> Iterator[None]:
    """Say in an error which tower was looked for, and how to name another."""
    try:
        yield
    except (CheckpointError, RequestError) as error:
        at = "" if place == stated else f" at {place}"
        raise type(error)(
            f"the vision tower {stated!r}{at} cannot be opened: {error.message}",
            hint=f"{error.hint}; or name another place: --tower {PurePosixPath(stated).name}=PATH",
        ) from None
