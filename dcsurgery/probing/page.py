"""A probe's answer as one page of HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from dcsurgery.evaluation.eval_report import Score
from dcsurgery.features import describe_layers
from dcsurgery.probing.probe_report import ProbeReport, StateGain

MARK = '<meta name="generator" content="dcsurgery probe">'
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "td,th{padding:.1rem .8rem .1rem 0;text-align:left;font-variant-numeric:tabular-nums}"
    ".verdict{padding:.6rem 1rem;border-left:.3rem solid #888;background:#f4f4f4}"
)
# Of the drawing, in pixels.
WIDTH, LINE, LEFT = 640, 22, 60
COLOURS = {"evidence": "#2a7f62", "none": "#b5b5b5", "control": "#c98b3b"}


def is_page(path: Path) -> bool:
    """Return whether a file is the page of a probe."""
    with path.open("rb") as file:
        return MARK.encode() in file.read(1000)


def render_page(report: ProbeReport) -> str:
    """Return the whole page."""
    gains = [("set", "states", "gain", "95 %")]
    gains += [(item.name, item.layers, *_numbers(item.gain)) for item in report.sets]
    kinds = [("questions", "rows", "gain", "95 %")]
    kinds += [
        (kind, str(score.rows), *_numbers(score)) for kind, score in report.expected_by_type.items()
    ]
    facts = [
        ("data", f"{report.data}: {report.rows:,} rows with {report.pictures:,} pictures"),
        ("skipped", f"{report.skipped_rows:,} rows"),
        ("loss today", f"{report.loss:.4f} nats per answer token"),
        ("reads today", f"hidden state {describe_layers(report.feature_layers)}"),
        ("expected gain", " ".join(_numbers(report.expected))),
        ("recommended", f"--layers '{report.recommended.layers}'" if report.recommended.layers
         else "no operation"),
    ]  # fmt: skip
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8">{MARK}',
        f"<title>probe of {escape(report.model)}</title><style>{STYLE}</style></head><body>",
        f"<h1>Probe of {escape(report.model)}</h1>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        _table(facts, head=False),
        "<h2>Expected gain of one hidden state, nats per answer token</h2>",
        _drawing(report),
        "<p>Green: the whole 95 % interval lies above the controls (brown). Grey: no evidence.</p>",
        "<h2>Together</h2>",
        _table(gains),
        *(["<h2>Expected, by question type</h2>", _table(kinds)] if len(kinds) > 1 else []),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _numbers(score: Score) -> tuple[str, str]:
    return f"{score.mean:+.4f}", f"{score.low:+.4f} to {score.high:+.4f}"


def _table(rows: Iterable[Sequence[str]], *, head: bool = True) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if head and not number else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _drawing(report: ProbeReport) -> str:
    """Return bars with intervals, from shallow to deep; shuffled states come last."""
    shown = [(f"{item.state}", "evidence" if item.evidence else "none", item)
             for item in report.states]  # fmt: skip
    shown += [(f"{item.state}", "control", item) for item in report.null.feature]
    shown.sort(key=lambda found: found[2].state)
    shown += [(f"{item.state} shuffled", "control", item) for item in report.null.shuffled]
    low = min(0.0, *(item.gain.low for _, _, item in shown))
    high = max(1e-12, *(item.gain.high for _, _, item in shown))
    lines = [
        _bar(number, name, COLOURS[kind], item, (low, high))
        for number, (name, kind, item) in enumerate(shown)
    ]
    height = LINE * len(shown) + 4
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" font-size="12">\n'
        + "\n".join(lines)
        + "\n</svg>"
    )


def _bar(number: int, name: str, colour: str, item: StateGain, span: tuple[float, float]) -> str:
    low, high = span

    def place(gain: float) -> float:
        return LEFT + 40 + (WIDTH - LEFT - 50) * (gain - low) / (high - low)

    top, zero, end = LINE * number + 4, place(0.0), place(item.gain.mean)
    middle = top + LINE / 2 - 3
    words = f"{name}: {' '.join(_numbers(item.gain))}"
    return (
        f'<g><title>{escape(words)}</title><text x="0" y="{middle + 4:.1f}">{escape(name)}</text>'
        f'<rect x="{min(zero, end):.1f}" y="{top}" width="{abs(end - zero):.1f}" '
        f'height="{LINE - 6}" fill="{colour}"/>'
        f'<line x1="{place(item.gain.low):.1f}" x2="{place(item.gain.high):.1f}" '
        f'y1="{middle:.1f}" y2="{middle:.1f}" stroke="black"/></g>'
    )
