"""Blocks that remember: the same numbers, computed once, and never an old one for a new state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcsurgery
from dcsurgery.anatomy import Anatomy
from dcsurgery.checkpoint.digests import same_bytes
from dcsurgery.connectors.attach import find_module
from dcsurgery.tiny.llava import write_tiny_llava
from dcsurgery.verification import parity
from dcsurgery.verification.models import load_vision
from dcsurgery.verification.remembered import remembered_blocks


class Loaded:
    """A tiny model, and how often each block of its tower computed."""

    def __init__(self, folder: Path) -> None:
        from dcsurgery.checkpoint.contents import open_checkpoint

        self.base = write_tiny_llava(folder)
        self.anatomy: Anatomy = dcsurgery.inspect(self.base).anatomy
        self.model = load_vision(open_checkpoint(self.base))
        self.blocks = list(find_module(self.model, self.anatomy.tower.paths[0][1]).children())
        self.computed = 0
        for block in self.blocks:
            count_calls(block.mlp, self)
        self.pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def features(self, pixels: Tensor | None = None) -> Tensor:
        found = self.model.get_image_features(self.pixels if pixels is None else pixels)
        tokens: Tensor = torch.cat(list(getattr(found, "pooler_output", found)))
        return tokens


def count_calls(module: nn.Module, owner: Loaded) -> None:
    def note(*_: Any) -> None:
        owner.computed += 1

    module.register_forward_hook(note)


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return Loaded(tmp_path / "base")


def test_the_same_pictures_are_computed_once(loaded: Loaded) -> None:
    plain = loaded.features()
    depth, loaded.computed = loaded.computed, 0
    with remembered_blocks(loaded.model, loaded.anatomy):
        assert all(torch.equal(loaded.features(), plain) for _ in range(3))
    assert loaded.computed == depth == len(loaded.blocks)
    loaded.features()
    assert loaded.computed == 2 * depth


def test_other_pictures_and_other_dtypes_are_computed_anew(loaded: Loaded) -> None:
    other = loaded.pixels + 1
    plain = loaded.features(other)
    with remembered_blocks(loaded.model, loaded.anatomy):
        loaded.features()
        assert torch.equal(loaded.features(other), plain)
        loaded.model.double()
        assert loaded.features(other.double()).dtype == torch.float64


def test_what_a_hook_changes_reaches_the_next_block(loaded: Loaded) -> None:
    with remembered_blocks(loaded.model, loaded.anatomy):
        before = loaded.features()
        first = loaded.blocks[0]

        def change(_: Any, __: Any, output: Any) -> Any:
            return output[0] + 1 if isinstance(output, tuple) else output + 1

        handle = first.register_forward_hook(change)
        assert not torch.equal(loaded.features(), before)
        handle.remove()
        assert torch.equal(loaded.features(), before)


def test_what_is_written_into_a_state_does_not_stay(loaded: Loaded) -> None:
    with remembered_blocks(loaded.model, loaded.anatomy):
        before = loaded.features()

        def overwrite(_: Any, __: Any, output: Any) -> None:
            (output[0] if isinstance(output, tuple) else output).zero_()

        handle = loaded.blocks[-1].register_forward_hook(overwrite)
        loaded.features()
        handle.remove()
        assert torch.equal(loaded.features(), before)


@pytest.mark.parametrize(("form", "passes"), [("delta", 2), ("stock", 3)])
def test_verify_runs_the_tower_once_for_each_number_format(
    form: str, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and branch as stored, branch and formula in fp32, and a stock form's own tower."""
    base = write_tiny_llava(tmp_path / "base", dtype="bfloat16")
    dcsurgery.convert(base, tmp_path / "out", form=form)
    anatomy = dcsurgery.inspect(base).anatomy
    counts = []
    real = parity.load_vision

    def load(checkpoint: Any) -> Any:
        model = real(checkpoint)
        owner = Loaded.__new__(Loaded)
        owner.computed = 0
        for block in find_module(model, anatomy.tower.paths[0][1]).children():
            count_calls(block.mlp, owner)
        counts.append(owner)
        return model

    monkeypatch.setattr(parity, "load_vision", load)
    assert dcsurgery.verify(tmp_path / "out").passed
    assert sum(owner.computed for owner in counts) == passes * anatomy.tower.depth


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([b"ab", b"c"], [b"a", b"bc"], True),
        ([b"abc"], [b"ab"], False),
        ([b"ab"], [b"abc"], False),
        ([b"abc"], [b"abd"], False),
        ([], [], True),
        ([b""], [], True),
        ([b"a", b"", b"b"], [b"ab"], True),
        ([b"ab"], [b"ab", b"", b"c"], False),
    ],
)
def test_streams_are_compared_however_they_are_cut(
    one: list[bytes], other: list[bytes], same: bool
) -> None:
    assert same_bytes(one, other) is same
