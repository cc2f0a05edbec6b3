from __future__ import annotations

import pytest

from dcsurgery.printing import units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (8192, "8,192"),
        (99_999, "99,999"),
        (100_000, "100 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (12_582_912, "12.6 M"),
        (7_063_427_072, "7.06 B"),
    ],
)
def test_counts_have_three_digits_and_small_ones_are_exact(number: int, text: str) -> None:
    assert units.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (25_165_824, "25.2 MB"), (999_600, "1 MB"), (14_126e6, "14.1 GB")],
)
def test_sizes_are_decimal(number: int, text: str) -> None:
    assert units.size(int(number)) == text


def test_flops_carry_their_prefix() -> None:
    assert units.flops(115_964_116_992) == "116 GFLOP"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.3456, "0.35 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s")],
)
def test_seconds_are_not_more_precise_than_they_mean(value: float, text: str) -> None:
    assert units.seconds(value) == text
