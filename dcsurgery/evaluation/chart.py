"""report.png: one group of bars per question type, one bar per model, with intervals."""

from __future__ import annotations

from pathlib import Path

from dcsurgery.evaluation.eval_report import EvalReport

TITLES = {
    "exact": "exact match",
    "vqa": "VQA accuracy",
    "loss": "mean loss per answer token",
    "choice": "right option",
}
LABEL = 40


def draw_report(report: EvalReport, path: Path) -> None:
    """Write the report's scores as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(report.models[0].by_type)
    groups = ["all", *kinds] if kinds else ["all"]
    figure = Figure(figsize=(max(5.0, 1.1 * len(groups) + 2), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(report.models)
    for index, result in enumerate(report.models):
        scores = [result.score, *(result.by_type[kind] for kind in kinds)]
        means = [score.mean for score in scores]
        below = [max(0.0, score.mean - score.low) for score in scores]
        above = [max(0.0, score.high - score.mean) for score in scores]
        shift = (index - (len(report.models) - 1) / 2) * width
        places = [place + shift for place in range(len(groups))]
        name = result.model if len(result.model) <= LABEL else f"...{result.model[-LABEL:]}"
        axes.bar(places, means, width, yerr=[below, above], capsize=2, label=_escaped(name))
    names = [_escaped(name) for name in groups]
    axes.set_xticks(range(len(groups)), names, rotation=30, ha="right")
    axes.set_ylabel(TITLES[report.metric])
    if report.metric != "loss":
        axes.set_ylim(0, 1.05)
    axes.set_title(f"{report.rows} rows, 95 % bootstrap intervals", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _escaped(name: str) -> str:
    """Return a name without what matplotlib reads as mathematics."""
    return name.replace("$", r"\$")
