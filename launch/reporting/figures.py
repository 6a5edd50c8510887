"""Plotly figures of a report, as plain dicts; colours that follow the theme are set in the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from msrec.launch.training.metric_log import WATCHED, MetricLog, Points

PALETTE = ("#3b82c4", "#e07b39", "#3aa17e", "#c06bb0", "#c9a227", "#7d8fa9")
GREY = "#8a8f98"
MOST_SCENARIOS = 12
Figure = dict[str, Any]


def figure(name: str, caption: str, traces: list[dict[str, Any]], x: str, y: str) -> Figure:
    """A figure with named axes; `caption` says in words what is to be seen."""
    layout = {
        "height": 340,
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "legend": {"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0},
        "hovermode": "closest",
        "showlegend": True,
        "xaxis": {"title": {"text": x, "standoff": 6}, "zeroline": False, "automargin": True},
        "yaxis": {"title": {"text": y, "standoff": 6}, "zeroline": False, "automargin": True},
    }
    return {"name": name, "caption": caption, "data": traces, "layout": layout}


def training_figures(logs: Mapping[str, MetricLog]) -> list[Figure]:
    """Loss and AUC over steps, a colour a run; one that nobody logged is left out."""
    loss, auc = [], []
    for at, (run, log) in enumerate(logs.items()):
        colour = PALETTE[at % len(PALETTE)]
        train, valid = f"{run}, training", f"{run}, validation"
        loss += _line(train, log.curve("train", "loss"), colour, "dot", width=1.3)
        loss += _line(valid, log.curve("valid", "log_loss/all"), colour, markers=True)
        auc += _line(train, log.curve("train", "auc/all"), colour, "dot", width=1.3)
        auc += _line(valid, log.curve("valid", "auc/all"), colour, markers=True)
        for split in (split for split in log.steps if split.startswith(WATCHED)):
            watched = f"{run}, {split}"
            loss += _line(watched, log.curve(split, "log_loss/all"), colour, "dash", markers=True)
            auc += _line(watched, log.curve(split, "auc/all"), colour, "dash", markers=True)
    figures = [
        figure("Loss", "Log loss over training steps; lower is better.", loss, "step", "log loss"),
        figure("AUC", "AUC of all rows over training steps.", auc, "step", "AUC"),
    ]
    return [found for found in figures if found["data"]]


def scenario_figures(logs: Mapping[str, MetricLog]) -> tuple[list[Figure], int]:
    """Validation AUC over steps, a small figure a scenario; and how many scenarios have none.

    No more than the first `MOST_SCENARIOS` are drawn.
    """
    start = "auc/scenario="
    found = dict.fromkeys(m for log in logs.values() for m in log.metrics("valid"))
    metrics = [metric for metric in found if metric.startswith(start)]
    figures = []
    for metric in metrics[:MOST_SCENARIOS]:
        traces: list[dict[str, Any]] = []
        for at, (run, log) in enumerate(logs.items()):
            colour = PALETTE[at % len(PALETTE)]
            traces += _line(run, log.curve("valid", metric), colour, markers=True)
        figures.append(figure(metric.removeprefix(start), "", traces, "step", "validation AUC"))
    return figures, len(metrics) - len(figures)


def calibration_figure(points: Mapping[str, Points]) -> Figure:
    """Share of clicks against mean score, a point for each tenth of the rows."""
    top = max((max(x + y) for x, y in points.values() if x), default=1.0) * 1.04
    traces = _line("perfect", ([0.0, top], [0.0, top]), GREY, "dash", width=1.2)
    for at, (run, found) in enumerate(points.items()):
        traces += _line(run, found, PALETTE[at % len(PALETTE)], markers=True)
    caption = "Each point is a tenth of the rows, by score; on the dashed line, scores are right."
    return figure("Calibration", caption, traces, "mean score", "share of clicks")


def roc_figure(points: Mapping[str, Points], best: Points | None) -> Figure:
    """True against false positive rate, with that of the true probability where it is known."""
    traces = _line("chance", ([0.0, 1.0], [0.0, 1.0]), GREY, "dash", width=1.2)
    if best is not None:
        traces += _line("best possible", best, GREY, width=1.6)
    for at, (run, found) in enumerate(points.items()):
        traces += _line(run, found, PALETTE[at % len(PALETTE)])
    caption = "Share of clicks found against share of non-clicks taken along."
    return figure("ROC", caption, traces, "false positive rate", "true positive rate")


def score_figure(run: str, edges: Sequence[float], shares: Mapping[str, Sequence[float]]) -> Figure:
    """How scores are spread: shares of the rows of each kind, by score.

    Args:
        run: its name.
        edges: of the bins, one more than shares.
        shares: kind of rows -> share of them in each bin.
    """
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    traces: list[dict[str, Any]] = []
    for at, (name, values) in enumerate(shares.items()):
        traces += _line(name, (middles, list(values)), PALETTE[at % len(PALETTE)])
    caption = "Share of the rows with a positive and with a negative label, by score."
    return figure(f"Scores of {run}", caption, traces, "score", "share of rows")


def cosine_figure(name: str, caption: str, names: Sequence[str], cosines: Any) -> Figure:
    """How alike some things are: a heat map of (S, S) cosines, the first row on top."""
    trace = {
        "type": "heatmap",
        "x": list(names),
        "y": list(names),
        "z": [[round(value, 4) for value in row] for row in cosines],
        "zmin": -1,
        "zmax": 1,
        "colorscale": "RdBu",
        "reversescale": True,
        "showscale": True,
    }
    if len(names) <= MOST_SCENARIOS:
        trace |= {"texttemplate": "%{z:.2f}"}
    drawn = figure(name, caption, [trace], "", "")
    drawn["layout"]["yaxis"] |= {"autorange": "reversed"}
    return drawn


def difference_figure(
    name: str, reference: str, points: Sequence[tuple[str, str, float, float]]
) -> Figure:
    """Mean difference of AUC and its interval, a row a model and arm, a colour an arm.

    Args:
        name: of the figure.
        reference: what the differences are to.
        points: (model, arm, mean, half the interval's width).
    """
    arms = list(dict.fromkeys(arm for _, arm, _, _ in points))
    traces = []
    for at, arm in enumerate(arms):
        colour = PALETTE[at % len(PALETTE)]
        of_arm = [(model, mean, half) for model, one, mean, half in points if one == arm]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": arm,
                "x": [round(mean, 6) for _, mean, _ in of_arm],
                "y": [f"{model}, {arm}" for model, _, _ in of_arm],
                "error_x": {"type": "data", "array": [round(half, 6) for *_, half in of_arm]},
                "marker": {"color": colour, "size": 9},
            }
        )
    caption = f"AUC less that of {reference}: mean over seeds and its 95 % interval."
    drawn = figure(name, caption, traces, f"AUC - {reference}", "")
    models = list(dict.fromkeys(model for model, *_ in points))
    rows = [f"{model}, {arm}" for model in models for arm in arms]
    drawn["layout"]["height"] = 110 + 22 * len(points)
    drawn["layout"]["xaxis"] |= {"zeroline": True}
    drawn["layout"]["yaxis"] |= {"categoryorder": "array", "categoryarray": rows[::-1]}
    return drawn


def _line(
    name: str,
    points: Points,
    colour: str,
    dash: str = "solid",
    width: float = 2.2,
    markers: bool = False,
) -> list[dict[str, Any]]:
    """One trace, or none where there is nothing to draw."""
    x, y = points
    if not x:
        return []
    trace = {"type": "scatter", "name": name, "x": [round(v, 6) for v in x]}
    trace |= {"y": [round(v, 6) for v in y], "mode": "lines+markers" if markers else "lines"}
    return [trace | {"line": {"color": colour, "dash": dash, "width": width}}]
