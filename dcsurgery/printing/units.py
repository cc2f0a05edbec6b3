"""Numbers as people read them: three significant digits and a unit."""

from __future__ import annotations

from collections.abc import Sequence


def scaled(value: float, units: Sequence[str]) -> str:
    """Return a number with three significant digits and the unit, a thousand apart, that fits."""
    step = 0
    while value >= 999.5 and step < len(units) - 1:
        value /= 1000
        step += 1
    return f"{value:.3g} {units[step]}"


def size(number: int) -> str:
    """Like "512 B", "25.2 MB", "14.1 GB": decimal units, as disks are sold."""
    return scaled(number, ("B", "kB", "MB", "GB", "TB"))


def count(number: int) -> str:
    """Like "8,192", "12.6 M", "7.06 B": exact below a hundred thousand."""
    if number < 100_000:
        return f"{number:,}"
    return scaled(number / 1e6, ("M", "B", "T")) if number >= 999_500 else f"{number / 1e3:.3g} k"


def flops(number: int) -> str:
    """Like "116 GFLOP"."""
    return scaled(number, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))


def seconds(value: float) -> str:
    """Like "0.34 s", "12 s", "3 min 20 s"."""
    if value < 9.95:
        return f"{value:.2g} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(number: int, noun: str) -> str:
    """Like "1 file", "3 files"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
