"""Three promises of the house: imports point down, the main job needs no torch, names are told."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dcsurgery

PACKAGE = Path(dcsurgery.__file__).parent
# From the bottom up: a room imports from itself and from those before it, for type checkers too.
LAYERS = (
    *("errors", "fields", "markdown", "pixels", "anatomy", "features", "printing", "modeling"),
    *("tiny", "checkpoint", "architectures", "connectors", "originals", "surgery", "loading"),
    *("data", "verification", "training", "evaluation", "probing", "serving", "publishing"),
    *("recipes", "trials", "demo", "cli"),
)
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "huggingface_hub"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
# The package's own face: lazy names for users, and what `python -m` runs.
FACE = {"dcsurgery", "dcsurgery.__main__"}


def layer(module: str) -> int:
    """The index of a module's room. Raises ValueError for a module that has none."""
    return LAYERS.index(module.split(".")[1])


def imports(tree: ast.AST, *, everywhere: bool) -> Iterator[str]:
    """Yield what a module imports of this package; `everywhere` includes function bodies, and
    imports for type checkers alone.
    """
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if for_types and not everywhere:
            continue
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names if item.name.startswith("dcsurgery"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            if (node.module or "").split(".")[0] == "dcsurgery":
                for item in node.names:
                    inner = f"{node.module}.{item.name}"
                    yield inner if inner in MODULES else f"{node.module}"
                    if node.module == "dcsurgery":
                        known = inner in MODULES or item.name == "__version__"
                        assert known, f"{item.name} has a home below dcsurgery/__init__.py"
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, everywhere=everywhere)


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in MODULES.keys() - FACE if name.split(".")[1] not in LAYERS]
    assert homeless == []


@pytest.mark.parametrize("module", sorted(MODULES.keys() - FACE))
def test_imports_point_down_only(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = set(imports(tree, everywhere=True)) - {"dcsurgery"}
    up = sorted(other for other in found if layer(other) > layer(module))
    assert up == [], f"{module} imports from above itself"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        name: set(imports(ast.parse(path.read_text(encoding="utf-8")), everywhere=False)) - FACE
        for name, path in MODULES.items()
        if name not in FACE
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == MODULES.keys() - FACE


def imported_by(*arguments: object) -> set[str]:
    """Top-level modules in memory after a command ran, in a process of its own."""
    code = (
        "import sys, json\n"
        "from dcsurgery.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.strip().split("\n")[-1]))


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "convert --help",
        "architectures",
        "inspect MODEL",
        "inspect MODEL --json",
        "convert MODEL --dry-run",
        "convert MODEL -o OUT --form delta",
        "convert MODEL -o OUT --form delta --init paper --json",
        "convert MODEL -o OUT --form stock",
        "convert ORIGINAL -o OUT --form stock",
        "export DELTA -o OUT",
    ],
)
def test_the_main_job_never_imports_torch(
    tiny_siglip: Path, tiny_original: Path, tmp_path: Path, command: str
) -> None:
    places = {"MODEL": tiny_siglip, "ORIGINAL": tiny_original, "OUT": tmp_path / "out"}
    places["DELTA"] = tmp_path / "delta"
    if "DELTA" in command:
        dcsurgery.convert(tiny_siglip, tmp_path / "delta", form="delta")
    found = imported_by(*(places.get(word, word) for word in command.split()))
    assert found & HEAVY == set()


def test_help_imports_nothing_it_does_not_need() -> None:
    found = imported_by("--help")
    assert (
        found
        & {"numpy", "pydantic", "rich", "dcsurgery.surgery.plan", "dcsurgery.surgery.plan_file"}
        == set()
    )


@pytest.mark.parametrize("name", sorted(set(dcsurgery.__all__) - {"__version__"}))
def test_every_public_name_resolves_and_says_what_it_is(name: str) -> None:
    found = getattr(dcsurgery, name)
    # A dataclass without a docstring gets its signature for one.
    assert found.__doc__ and not found.__doc__.startswith(f"{name}(")
    assert found.__doc__ != object.__doc__


def test_the_public_names_are_the_ones_listed() -> None:
    assert dir(dcsurgery) == sorted(dcsurgery.__all__)
    assert set(dcsurgery._HOMES) == set(dcsurgery.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = dcsurgery.no_such_name


def test_no_test_module_imports_another() -> None:
    """What several tests need is in a helper: an imported test class would run once more."""
    tests = Path(__file__).parent
    guilty = set()
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                here = "tests." if node.level else ""
                names = [f"{here}{node.module}.{item.name}" for item in node.names]
            else:
                names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("tests.") and ".test_" in name for name in names):
                guilty.add(str(path.relative_to(tests)))
    assert guilty == set()
