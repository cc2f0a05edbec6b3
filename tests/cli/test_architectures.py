from __future__ import annotations

import json

from dcsurgery.architectures import available
from dcsurgery.connectors import KINDS
from tests.docs.pages import PAGES

from .conftest import Run


def test_the_table_names_every_family_and_what_loads_it(run: Run) -> None:
    result = run("architectures")
    assert result.exit_code == 0
    for found in available():
        for word in (found.name, *found.checkpoints, *found.forms, *found.stock_loader.split()):
            assert word in result.stdout
    assert "dcsurgery.load(OUT)" in result.stdout


def test_the_json_table_has_the_same(run: Run) -> None:
    answer = json.loads(run("architectures", "--json").stdout)
    assert answer["schema_version"] == 1
    found = {item["name"]: item for item in answer["architectures"]}
    assert set(found) == {item.name for item in available()}
    llava = found["llava"]
    assert llava["connectors"] == list(KINDS) == ["dci", "sci", "sti", "mix"] and llava[
        "forms"
    ] == ["stock", "delta"]
    assert llava["towers"] == "CLIP, SigLIP, Pixtral"
    assert llava["loaders"]["delta"] == "dcsurgery.load"
    assert llava["loaders"]["stock"].startswith("transformers >= 4.49")


def test_every_family_says_which_towers_it_has() -> None:
    assert all(found.towers for found in available())


def test_the_page_of_families_has_the_same_table(run: Run) -> None:
    table = run("architectures", "--markdown").stdout
    assert table.count("\n") == len(available()) + 2
    assert table in PAGES["docs/families.md"].text
