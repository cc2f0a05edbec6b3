from __future__ import annotations

from pathlib import Path

import pytest

from dcsurgery.checkpoint.contents import open_checkpoint
from tests.benchmarks.convert import LARGE
from tests.benchmarks.synthetic import FULL_BYTES, write_checkpoint


def test_the_full_checkpoint_has_the_true_tensors_and_shards(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", sparse=True))
    assert len(checkpoint.tensors) == 686
    assert (
        sum(entry.nbytes for entry in checkpoint.tensors.values()) == FULL_BYTES == 14_126_854_144
    )
    assert [round(file.size / 1e9, 2) for file in checkpoint.weights] == [4.99, 4.96, 4.18]
    weight = checkpoint.tensors["multi_modal_projector.linear_1.weight"]
    assert (weight.dtype, weight.shape) == ("F16", (4096, 1024))


@pytest.mark.parametrize("scale", [0.03, 0.1, 0.5])
def test_smaller_checkpoints_keep_three_shards(scale: float, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", scale, sparse=True))
    assert len(checkpoint.weights) == 3


def test_the_large_checkpoint_is_five_times_the_full_one(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", LARGE, sparse=True))
    sizes = [file.size for file in checkpoint.weights]
    assert 5.0 <= sum(sizes) / FULL_BYTES < 5.03
    assert max(sizes) < 5.001e9
