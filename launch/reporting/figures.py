"""Plotly figures of a report, as plain dicts; the page adds the colours of its theme."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from msrec.data.labels import LabelKind
from msrec.launch.training.metric_log import WATCHED, MetricLog, Points
from msrec.model.metrics.definitions import MAIN_METRIC, Floats, parse_metric_name

PALETTE = ("#3b82c4", "#e07b39", "#3aa17e", "#c06bb0", "#c9a227", "#7d8fa9")
GREY = "#8a8f98"
MAX_SCENARIOS = 12
"""Most scenarios with a curve each, or with numbers in a heat map."""
Trace = dict[str, Any]


class Figure(TypedDict):
    """A figure of a page; `data` and `layout` are Plotly's."""

    name: str
    caption: str
    data: list[Trace]
    layout: dict[str, Any]


def figure(name: str, caption: str, traces: list[Trace], x: str, y: str) -> Figure:
    """Returns a figure of traces.

    Args:
        name: title of the figure.
        caption: a sentence on what the figure shows.
        traces: Plotly's traces.
        x: title of the horizontal axis.
        y: title of the vertical axis.
    """
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
    """Returns loss, AUC and RMSE over steps, a colour for each run; without those without data."""
    figures = []
    shown = [
        ("Loss", "Log loss by step; lower is better.", "log loss", "loss", "log_loss/all"),
        ("AUC", "AUC of all rows by step.", "AUC", "auc/all", "auc/all"),
        ("RMSE", "RMSE of all rows by step; lower is better.", "RMSE", "rmse/all", "rmse/all"),
    ]
    logged = dict.fromkeys(metric for log in logs.values() for metric in log.metrics("valid"))
    for metric in logged:
        parts = parse_metric_name(metric)
        if parts is None or parts.label is None or parts.scenario is not None:
            continue
        if parts.metric in MAIN_METRIC.values():
            title = parts.metric.upper()
            caption = f"{title} of {parts.label} in all rows by step."
            shown.append((f"{title} of {parts.label}", caption, title, metric, metric))
    for name, caption, axis, trained, metric in shown:
        traces: list[Trace] = []
        for number, (run, log) in enumerate(logs.items()):
            colour, curve = _colour(number), log.curve("train", trained)
            traces += _line(f"{run}, training", curve, colour, "dot", width=1.3)
            traces += _line(f"{run}, validation", log.curve("valid", metric), colour, markers=True)
            for split in (split for split in log.steps if split.startswith(WATCHED)):
                curve = log.curve(split, metric)
                traces += _line(f"{run}, {split}", curve, colour, "dash", markers=True)
        if traces:
            figures.append(figure(name, caption, traces, "step", axis))
    return figures


def scenario_figures(logs: Mapping[str, MetricLog]) -> tuple[list[Figure], int]:
    """Returns validation AUC over steps for each of the first `MAX_SCENARIOS` scenarios.

    Also returns the number of scenarios without a figure.
    """
    prefix = "auc/scenario="
    logged = dict.fromkeys(metric for log in logs.values() for metric in log.metrics("valid"))
    metrics = [metric for metric in logged if metric.startswith(prefix)]
    figures = []
    for metric in metrics[:MAX_SCENARIOS]:
        traces: list[Trace] = []
        for number, (run, log) in enumerate(logs.items()):
            traces += _line(run, log.curve("valid", metric), _colour(number), markers=True)
        figures.append(figure(metric.removeprefix(prefix), "", traces, "step", "validation AUC"))
    return figures, len(metrics) - len(figures)


def calibration_figure(points: Mapping[str, Points], kind: LabelKind = "binary") -> Figure:
    """Returns the mean label against the mean score, a point for each tenth of the rows."""
    top = max((max(x + y) for x, y in points.values() if x), default=1.0) * 1.04
    traces = _line("perfect", ([0.0, top], [0.0, top]), GREY, "dash", width=1.2)
    for number, (run, curve) in enumerate(points.items()):
        traces += _line(run, curve, _colour(number), markers=True)
    caption = "Each point is a tenth of the rows by score; the dashed line is ideal."
    observed = "share of positives" if kind == "binary" else "mean label"
    return figure("Calibration", caption, traces, "mean score", observed)


def roc_figure(points: Mapping[str, Points], best: Points | None) -> Figure:
    """Returns the true against the false positive rate.

    Args:
        points: run -> false and true positive rates.
        best: rates of the true click probability, if it is known.
    """
    traces = _line("chance", ([0.0, 1.0], [0.0, 1.0]), GREY, "dash", width=1.2)
    if best is not None:
        traces += _line("best possible", best, GREY, width=1.6)
    for number, (run, curve) in enumerate(points.items()):
        traces += _line(run, curve, _colour(number))
    caption = "Share of positives against share of negatives above each score threshold."
    return figure("ROC", caption, traces, "false positive rate", "true positive rate")


def score_figure(run: str, edges: Floats, shares: Mapping[str, Floats]) -> Figure:
    """Returns the distribution of the scores of a run, from `score_distribution`."""
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    traces: list[Trace] = []
    for number, (label, values) in enumerate(shares.items()):
        traces += _line(label, (middles, values.tolist()), _colour(number))
    caption = "Distribution of the scores of positive and of negative rows."
    return figure(f"Scores of {run}", caption, traces, "score", "share of rows")


def value_figure(run: str, edges: Floats, shares: Mapping[str, Floats]) -> Figure:
    """Returns the distributions of scores and labels of a run, from `value_distribution`."""
    caption = "Distribution of the scores and of the labels; the last bin holds all above it, too."
    return {**score_figure(run, edges, shares), "caption": caption}


def cosine_figure(
    name: str, caption: str, names: Sequence[str], cosines: Sequence[Sequence[float]]
) -> Figure:
    """Returns a heat map of (S, S) cosines, the first row at the top."""
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
    if len(names) <= MAX_SCENARIOS:
        trace |= {"texttemplate": "%{z:.2f}"}
    heat_map = figure(name, caption, [trace], "", "")
    heat_map["layout"]["yaxis"] |= {"autorange": "reversed"}
    return heat_map


def attention_figure(
    name: str, caption: str, events: Sequence[str], weights: Mapping[str, Sequence[float]]
) -> Figure:
    """Returns a list of bars: an event per row, the newest at the top, a colour per source.

    Args:
        name: title of the figure.
        caption: a sentence on what the figure shows.
        events: names, oldest first.
        weights: source -> weight of each event.
    """
    labels = [f"{number}. {event}" for number, event in enumerate(events, start=1)]
    traces: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": source,
            "x": [round(weight, 4) for weight in of_source],
            "y": labels,
            "marker": {"color": _colour(number)},
        }
        for number, (source, of_source) in enumerate(weights.items())
    ]
    bars = figure(name, caption, traces, "attention weight", "")
    bars["layout"] |= {"height": 120 + (14 + 8 * len(weights)) * len(events), "barmode": "group"}
    bars["layout"]["legend"] |= {"y": 1, "yanchor": "bottom"}
    bars["layout"]["margin"] |= {"t": 36}
    return bars


def difference_figure(
    name: str, reference: str, points: Sequence[tuple[str, str, float, float]], metric: str = "AUC"
) -> Figure:
    """Returns mean differences and their intervals: a row per model and arm, a colour per arm.

    Args:
        name: title of the figure.
        reference: the arm whose metric is subtracted.
        points: (model, arm, mean, half the interval's width).
        metric: title of the metric.
    """
    arms = list(dict.fromkeys(arm for _, arm, _, _ in points))
    traces = []
    for number, arm in enumerate(arms):
        of_arm = [(model, mean, half) for model, other, mean, half in points if other == arm]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": arm,
                "x": [round(mean, 6) for _, mean, _ in of_arm],
                "y": [f"{model}, {arm}" for model, _, _ in of_arm],
                "error_x": {"type": "data", "array": [round(half, 6) for *_, half in of_arm]},
                "marker": {"color": _colour(number), "size": 9},
            }
        )
    caption = f"{metric} minus that of {reference}: mean over seeds with its 95 % interval."
    forest_plot = figure(name, caption, traces, f"{metric} - {reference}", "")
    models = list(dict.fromkeys(model for model, *_ in points))
    rows = [f"{model}, {arm}" for model in models for arm in arms]
    forest_plot["layout"] |= {"height": 140 + 22 * len(points)}
    forest_plot["layout"]["margin"] |= {"t": 36}
    forest_plot["layout"]["legend"] |= {"y": 1, "yanchor": "bottom"}
    forest_plot["layout"]["xaxis"] |= {"zeroline": True}
    forest_plot["layout"]["yaxis"] |= {"categoryorder": "array", "categoryarray": rows[::-1]}
    return forest_plot


def _colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def _line(
    name: str,
    points: Points,
    colour: str,
    dash: str = "solid",
    width: float = 2.2,
    markers: bool = False,
) -> list[Trace]:
    """Returns one trace, or none without points."""
    x, y = points
    if not x:
        return []
    return [
        {
            "type": "scatter",
            "name": name,
            "x": [round(value, 6) for value in x],
            "y": [round(value, 6) for value in y],
            "mode": "lines+markers" if markers else "lines",
            "line": {"color": colour, "dash": dash, "width": width},
        }
    ]
