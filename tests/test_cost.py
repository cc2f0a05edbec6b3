"""The FLOPs a plan states, against rows counted in the running model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcsurgery.connectors.attach import find_module
from dcsurgery.connectors.request import Connector
from tests.architectures.cases import Case, make_case
from tests.architectures.families import contract

FAMILIES = {"llava": "llava.TestClip", "idefics2": "idefics2.TestIdefics2"}


def rows_read(case: Case) -> list[int]:
    """Rows that every site reads for one image, by a hook on the unmodified model."""
    seen: dict[int, int] = {}

    def note(index: int) -> Callable[..., None]:
        return lambda module, args, out: seen.update({index: out.numel() // out.shape[-1]})

    model = case.plain()
    sites = case.anatomy.projector.sites
    handles = [
        find_module(model, site.module).register_forward_hook(note(index))
        for index, site in enumerate(sites)
    ]
    with torch.no_grad():
        case.tiny.forward(model, case.tiny.inputs(model, 1, 1))
    for handle in handles:
        handle.remove()
    return [seen[index] for index in range(len(sites))]


@pytest.mark.parametrize("family", FAMILIES)
def test_branch_flops_count_the_rows_the_sites_read(family: str, tmp_path: Path) -> None:
    case = make_case(
        contract(FAMILIES[family]).tiny(tmp_path / "base", 1), Connector("dci", form="delta")
    )
    columns = case.anatomy.feature_width * len(case.layout.blocks)
    sites = case.anatomy.projector.sites
    rows = rows_read(case)
    wanted = 2 * sum(n * site.out_features * columns for n, site in zip(rows, sites, strict=True))
    assert case.plan.extra_flops_per_image == wanted


def test_molmo2_reads_four_patches_per_window(tmp_path: Path) -> None:
    case = make_case(contract("molmo2.TestMolmo2").tiny(tmp_path / "base", 1), Connector("dci"))
    query, key, value = rows_read(case)
    assert key == value == 4 * query
    stated = [site.rows for site in case.anatomy.projector.sites]
    assert stated[1] == stated[2] == 4 * stated[0]


def test_appended_tokens_pass_the_whole_projector(tmp_path: Path) -> None:
    case = make_case(contract("llava.TestClip").tiny(tmp_path / "base", 1), Connector("sti"))
    # 2 states of 16 tokens, 8 to 1; matrices 16 -> 24 and 24 -> 24.
    assert case.plan.extra_flops_per_image == 2 * 4 * (16 * 24 + 24 * 24)
