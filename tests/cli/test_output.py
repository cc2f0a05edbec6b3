"""Stdout is data: what libraries print while a command works does not get into it."""

from __future__ import annotations

import sys

import pytest

from dcsurgery.cli.output import Output


@pytest.mark.parametrize("as_json", [True, False])
def test_what_libraries_print_goes_to_stderr(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Output(as_json=as_json)
    with out.working("working"):
        print("a library's news")
        out.data({"n": 1})
    with out.stepping("stepping") as step:
        print("more of it", file=sys.stdout)
        step(1, 2, "half")
    found = capsys.readouterr()
    assert found.out == '{\n  "n": 1\n}\n'
    assert "a library's news" in found.err and "more of it" in found.err
