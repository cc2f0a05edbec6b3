"""A trial as one page of HTML that needs nothing else, and its gains as a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dcsurgery.evaluation.trial_report import Example, Gain, TrialReport, Versus
from dcsurgery.printing import units
from dcsurgery.trials.verdict import write_gain

MARK = '<meta name="generator" content="dcsurgery trial">'
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "td,th{padding:.1rem .8rem .1rem 0;text-align:left;vertical-align:top;"
    "font-variant-numeric:tabular-nums}"
    ".verdict{padding:.6rem 1rem;border-left:.3rem solid #888;background:#f4f4f4}"
    ".worth-it{border-color:#2a7f62}.do-not{border-color:#b43c3c}"
    "figure{margin:1rem 0}img{max-width:20rem;max-height:20rem}"
)
# Longer sides of pictures on the page, in pixels.
SIDE = 320
GREY, GREEN, RED = "#8a8a8a", "#2a7f62", "#b43c3c"
Pictures = Mapping[int, Sequence[Any]]


def is_page(path: Path) -> bool:
    """Return whether a file is the page of a trial."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(1000)


def render_page(report: TrialReport, pictures: Pictures, figure: bytes | None) -> str:
    """Return the page; `pictures` are PIL images of the examples, by the places of their rows."""
    kind = report.decision.replace(" ", "-")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8">{MARK}',
        f"<title>trial of {escape(report.model)}</title><style>{STYLE}</style></head><body>",
        f"<h1>Trial of {escape(report.model)}</h1>",
        f'<p class="verdict {kind}">{escape(report.verdict)}</p>',
        *(f"<p>{escape(text)}</p>" for text in report.warnings),
        table(_facts(report), head=False),
        f"<h2>Arms: {escape(report.metric)} and loss on the test</h2>",
        table(arm_rows(report)),
        *([f'<img style="max-width:100%;max-height:none" src="{_uri(figure, "png")}" '
           'alt="gains by question type">'] if figure else []),
        *(part for item in report.comparisons if item.arm == report.judged
          for part in _versus(report, item)),
        *_differences(report, pictures),
        "<h2>Cost</h2>",
        table(_cost(report), head=False),
        f"<p>{escape(report.statistics)}. Intervals are 95 % bootstrap intervals over pictures; "
        "each row's scores are averaged over the seeds before. They do not cover what other seeds "
        "would bring: each seed's own gain is beside them.</p>",
        "</body></html>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def arm_rows(report: TrialReport) -> list[tuple[str, ...]]:
    """Return the table of arms: scores, loss, and each seed's score."""
    rows: list[tuple[str, ...]] = [("arm", "states", report.metric, "95 %", "loss", "seed by seed")]
    for arm in report.arms:
        states = ";".join(",".join(map(str, block)) for block in arm.blocks)
        score, seeds = arm.score, " ".join(f"{run.score:.4f}" for run in arm.runs)
        rows.append(
            (f"{arm.name}: {arm.title}", states if arm.name != "control" else "",
             f"{score.mean:.4f}", f"{score.low:.4f} to {score.high:.4f}", f"{arm.loss.mean:.4f}",
             seeds if len(arm.runs) > 1 else "")
        )  # fmt: skip
    return rows


def table(rows: Iterable[Sequence[str]], *, head: bool = True) -> str:
    """Return a table of texts; its first row may be the head."""
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if head and not number else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _facts(report: TrialReport) -> list[tuple[str, str]]:
    probe = report.probe
    facts = [
        ("trained on", report.data),
        ("test", f"{report.test}: {report.rows:,} rows, {report.pictures:,} pictures"),
        ("seeds", ", ".join(map(str, report.seeds))),
    ]
    facts += [("probe", probe.verdict)] if probe is not None else []
    return facts + [(f"without {name}", why) for name, why in report.left_out.items()]


def _versus(report: TrialReport, item: Versus) -> list[str]:
    head = ("questions", "rows", report.metric, "p", "seed by seed", "loss")
    rows = [head, _gain_row("all", item.gain, item.loss)]
    rows += [_gain_row(kind, gain, item.loss_by_type[kind]) for kind, gain in item.by_type.items()]
    told = []
    if item.lost:
        told.append(f"<p><b>Lost: {escape(', '.join(item.lost))}</b></p>")
    if item.doubtful:
        told.append(f"<p>May have lost: {escape(', '.join(item.doubtful))}</p>")
    return [f"<h2>{item.arm} against {item.against}; above zero is better</h2>", table(rows), *told]


def _gain_row(name: str, gain: Gain, loss: Gain) -> tuple[str, ...]:
    seeds = " ".join(f"{value:+.4f}" for value in gain.seeds) if len(gain.seeds) > 1 else ""
    span = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    off = f"{loss.mean:+.4f} [{loss.low:+.4f}, {loss.high:+.4f}]"
    return (name, f"{gain.rows:,}", span, f"{gain.p_value:.2g}", seeds, off)


def _differences(report: TrialReport, pictures: Pictures) -> list[str]:
    if not report.differences:
        return []
    rows: list[tuple[str, ...]] = [("seed", "won", "lost", "of")]
    rows += [tuple(map(str, (d.seed, d.won, d.lost, d.rows))) for d in report.differences]
    shown = [item for found in report.differences for item in found.examples]
    return [
        f"<h2>Where {report.judged} and control answer differently</h2>",
        table(rows),
        "<p>One of each kind, drawn at random by the first seed:</p>" if shown else "",
        *(_figure(item, pictures.get(item.place, ())) for item in shown),
    ]


def _figure(item: Example, pictures: Sequence[Any]) -> str:
    images = "".join(f'<img src="{_uri(_thumbnail(one), "png")}" alt="">' for one in pictures)
    rows = [
        ("question", item.question),
        ("reference", " | ".join(item.answers)),
        ("control", item.control),
        ("retrofit", item.retrofit),
        ("row", item.id),
    ]
    return (
        f"<figure><figcaption><b>{item.kind}</b></figcaption>{images}{table(rows, head=False)}"
        "</figure>"
    )


def _thumbnail(picture: Any) -> bytes:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _cost(report: TrialReport) -> list[tuple[str, str]]:
    trained = [(arm.name, run) for arm in report.arms for run in arm.runs if run.seed is not None]
    rows = [
        (f"{name}, seed {run.seed}",
         f"{units.seconds(run.seconds)} of updates, {units.seconds(run.eval_seconds)} of evaluation"
         + (f", {units.size(run.peak_memory)} at the peak" if run.peak_memory else ""))
        for name, run in trained
    ]  # fmt: skip
    if report.estimate is not None:
        hours = units.seconds(3600 * report.estimate.hours)
        rows.append((f"estimated for one {report.estimate.device}, all trainings",
                     f"{hours} ({report.estimate.formula})"))  # fmt: skip
    return rows


def draw_gains(report: TrialReport) -> bytes | None:
    """Return a PNG of the judged arm's gains over the control by question type, with intervals."""
    item = None if report.judged is None else report.versus(report.judged, "control")
    if item is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [("all", item.gain), *item.by_type.items()][::-1]
    figure = Figure(figsize=(7, 1.5 + 0.35 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (_, gain) in enumerate(rows):
        colour = GREEN if gain.low > 0 else RED if gain.high < 0 else GREY
        axes.plot([gain.low, gain.high], [place, place], color=colour, linewidth=2)
        axes.plot(gain.mean, place, "o", color=colour)
        axes.plot(gain.seeds, [place] * len(gain.seeds), "|", color=colour, markersize=9)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(len(rows)), [name.replace("$", r"\$")[:40] for name, _ in rows])
    unit = "nats taken off an answer token" if report.metric == "loss" else report.metric
    axes.set_xlabel(f"{report.judged} over control, {unit}")
    axes.set_title(f"{report.decision}: {write_gain(item.gain, report.metric)}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()
