"""Models that transformers does not have, in its own style, known to its Auto classes.

Importing this package (`import dcsurgery` does) costs nothing: transformers is not imported. Its
four Auto modules are watched instead, and each learns the classes the moment it is imported, or at
once when it is imported already. So `AutoModelForImageTextToText.from_pretrained(folder)` works
whichever of the two packages a program imports first.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WATCHED = {
    "transformers.models.auto.configuration_auto": "configuration",
    "transformers.models.auto.image_processing_auto": "image_processing",
    "transformers.models.auto.modeling_auto": "modeling",
    "transformers.models.auto.processing_auto": "processing",
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the watched modules as Python would, and has them tell when they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in WATCHED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """A module's own loader, followed by the registration."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        # inspect and importlib.resources ask the real loader for source and files.
        return getattr(self.inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self.inner.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        _register(module.__name__)


def _register(watched: str) -> None:
    """Import what belongs to an Auto module: each of those modules registers its class.

    One that is being imported right now, and imports the Auto module itself, does so at its end.
    """
    importlib.import_module(f"{__name__}.mini_gemini.{WATCHED[watched]}_mini_gemini")


def _watch() -> None:
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        for name in WATCHED:
            if name in sys.modules:
                _register(name)


_watch()
