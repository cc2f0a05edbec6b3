"""The promises on speed and memory, and the Markdown that shows them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measure import Series

MB, GB = 1e6, 1e9
CONVERSIONS = ("stock, copied", "stock, --link", "delta")
LARGE = ("stock, --link, 5x model", "delta, 5x model")
BASE, HELP, IMPORT = "cp -r", "dcsurgery --help", "python -c 'import typer'"


@dataclass(frozen=True)
class Limit:
    """A promise and what was measured for it."""

    promise: str
    measured: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the measured value keeps the promise."""
        return self.measured <= self.limit


def judge(series: Mapping[str, Series]) -> list[Limit]:
    """Return every promise whose commands were measured; ratios are of medians."""

    def ratio(name: str, to: str) -> float:
        return series[name].median / series[to].median

    def peak(names: tuple[str, ...]) -> float:
        return max(series[name].peak_rss for name in names) / MB

    rules: list[tuple[str, tuple[str, ...], Callable[[], float], float, str]] = [
        ("stock copy, time", ("stock, copied", BASE), lambda: ratio("stock, copied", BASE), 1.15,
         "x cp -r"),
        ("stock with --link, time", ("stock, --link", BASE), lambda: ratio("stock, --link", BASE),
         0.45, "x cp -r"),
        ("delta, time", ("delta",), lambda: series["delta"].median, 2.0, "s"),
        ("delta, written", ("delta",), lambda: series["delta"].written / MB, 60.0, "MB"),
        ("every conversion, peak memory", CONVERSIONS, lambda: peak(CONVERSIONS), 250.0, "MB"),
        ("5x larger model, peak memory", LARGE, lambda: peak(LARGE), 250.0, "MB"),
        ("--help, time", (HELP, IMPORT), lambda: ratio(HELP, IMPORT), 3.0, "x import typer"),
        ("inspect, time", ("dcsurgery inspect",), lambda: series["dcsurgery inspect"].median, 1.0,
         "s"),
    ]  # fmt: skip
    return [
        Limit(promise, value(), limit, unit)
        for promise, needed, value, limit, unit in rules
        if all(name in series for name in needed)
    ]


def describe(source: Path, size: int, place: str) -> str:
    """Return the paragraph above the tables."""
    shards = [f"{path.stat().st_size / GB:.2f}" for path in sorted(source.glob("*.safetensors"))]
    return (
        f"Model: {size / GB:.2f} GB, shards of {', '.join(shards)} GB. "
        f"Machine: {os.cpu_count()} CPUs, {place}, Python {platform.python_version()}. "
        "Every run starts with the source out of the page cache and ends with the copy synced to "
        "disk (`cp` and transformers: by `sync FILE...`, inside the measured time). "
        "Written: `write_bytes` of the process as the kernel counts them. "
        "Memory: peak resident set of the process.\n"
    )


def table(series: Mapping[str, Series], limits: list[Limit]) -> str:
    """Return two Markdown tables: all runs, and the promises."""
    rows = [
        "| command | wall time, s (all runs) | median, s | x cp -r | written | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    base = series.get(BASE)
    for one in series.values():
        times = " ".join(f"{run.seconds:.{_digits(one)}f}" for run in one.runs)
        compared = base is not None and "5x" not in one.name and one.runs[0].written > MB
        ratio = f"{one.median / base.median:.2f}" if base and compared else ""
        rows.append(
            f"| {one.name} | {times} | {one.median:.{_digits(one)}f} | {ratio} | "
            f"{_bytes(one.written)} | {_bytes(one.peak_rss)} |"
        )
    rows += ["", "| promise | measured | limit | |", "|---|---|---|---|"]
    for item in limits:
        verdict = "pass" if item.passed else "FAIL"
        rows.append(
            f"| {item.promise} | {item.measured:.3g} {item.unit} | {item.limit:g} {item.unit} | "
            f"{verdict} |"
        )
    return "\n".join(rows)


def _digits(one: Series) -> int:
    return 1 if one.median >= 10 else 2


def _bytes(count: int) -> str:
    if count < MB:
        return "-"
    return f"{count / GB:.2f} GB" if count >= GB else f"{count / MB:.0f} MB"
