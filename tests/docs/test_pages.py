"""The door stays in order: size, links, the picture, API pages, the drawn tree, the version."""

from __future__ import annotations

import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import dcsurgery
from tests.docs.pages import PAGES, ROOT, Page
from tests.docs.picture import PICTURE, draw

URL = "https://github.com/dcsurgery/dcsurgery"
RAW = "https://raw.githubusercontent.com/dcsurgery/dcsurgery/main/"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_the_readme_fits_one_screen_and_a_bit() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_links_lead_somewhere(page: Page) -> None:
    for link in LINK.findall(page.prose):
        for start in (f"{URL}/blob/main/", f"{URL}/tree/main/", RAW):
            if link.startswith(start):
                target = ROOT / link.removeprefix(start)
                break
        else:
            if "://" in link:
                assert link.startswith("https://"), link
                continue
            # The README and what travels with the wheel are read where relative links lead nowhere.
            assert page.path.parent.name == "docs", f"{link} has to be absolute"
            target = page.path.parent / link
        path, _, anchor = str(target).partition("#")
        assert Path(path or page.path).is_file(), link
        assert not anchor or anchor in anchors(Path(path or page.path)), link


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_paths_in_the_text_exist(page: Page) -> None:
    for path in re.findall(r"`((?:dcsurgery|docs|recipes|tests)/[\w./-]+)`", page.prose):
        assert (ROOT / path).exists(), path


def test_the_readme_quotes_the_evidence() -> None:
    def rows(page: Page, title: str) -> dict[str, list[str]]:
        lines = [
            line.split("|")[1:-1] for line in page.section(title).split("\n") if line[:1] == "|"
        ]
        return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines[2:]}

    quoted = rows(PAGES["README.md"], "What it is worth")
    measured = rows(PAGES["docs/demo.md"], "The full run")
    assert len(quoted) == 11
    for name, cells in quoted.items():
        base, control, _, retrofit, gain, _ = measured[name]
        assert cells == [base, control, retrofit, gain], name


def test_the_project_links_to_one_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["urls"].pop("Homepage") == URL
    for url in project["urls"].values():
        path = url.removeprefix(f"{URL}/blob/main/")
        assert (ROOT / path).is_file() or url == f"{URL}/issues"


def test_the_picture_is_what_the_program_draws() -> None:
    stored, drawn = (
        np.asarray(Image.open(data).convert("L"), int) for data in (PICTURE, io.BytesIO(draw()))
    )
    assert stored.shape == drawn.shape
    # Another CPU may round the edge of a glyph otherwise; a changed word moves far more pixels.
    assert (abs(stored - drawn) > 64).sum() <= 10, "run python -m tests.docs.picture"


def test_every_public_name_is_on_the_api_page() -> None:
    named = re.findall(r"^::: dcsurgery\.(\w+)$", PAGES["docs/api.md"].text, re.M)
    assert sorted([*named, "__version__"]) == sorted([*dcsurgery.__all__, "errors"])


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_names_of_the_package_exist(page: Page) -> None:
    assert {*re.findall(r"\bdc\.(\w+)", page.text)} <= {*dcsurgery.__all__}


def test_every_page_is_in_the_navigation_and_the_index() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [page for entry in nav for page in entry.values()]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert {link for link in LINK.findall(PAGES["docs/index.md"].text) if "://" not in link} == {
        *listed
    } - {"index.md", "api.md"}


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = PAGES["CONTRIBUTING.md"].section("The house").split("```text\n")[1].split("```")[0]
    inner = re.findall(r"^  (\w+)/", drawn, re.M)
    rooms = [path.parent.name for path in (ROOT / "dcsurgery").glob("*/__init__.py")]
    assert sorted(inner) == sorted(rooms)
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/", drawn, re.M))


def test_the_version_is_told_alike() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dcsurgery.__version__
    assert re.findall(r"^## (.+)$", PAGES["CHANGELOG.md"].text, re.M)[:2] == [
        "Unreleased", dcsurgery.__version__,
    ]  # fmt: skip
    from dcsurgery.publishing.card import CITATION

    authors = citation["references"][0]["authors"]
    named = [f"{author['family-names']}, {author['given-names']}" for author in authors]
    assert " and ".join(named) in " ".join(CITATION.split())
