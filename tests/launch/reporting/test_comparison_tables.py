"""Runs with different labels side by side, also runs that an older version evaluated."""

import pytest

from msrec.launch.evaluation.results import LabelResults, Results
from msrec.launch.reporting.comparison_tables import comparison_rows, label_names, with_label
from msrec.model.metrics.definitions import Metrics, ScenarioMetrics


def scenario_metrics(**values):
    whole = Metrics(rows=10, **values)
    return ScenarioMetrics(whole, {"feed": whole})


def results(label, labels=(), **values):
    return Results(
        dataset="d",
        split="test",
        checkpoint="step-1",
        rows=10,
        label=label,
        metrics=scenario_metrics(**values),
        labels={
            name: LabelResults(kind="regression", metrics=scenario_metrics(rmse=rmse))
            for name, rmse in labels
        },
    )


RUNS = {
    "joint": results("click", [("watch", 3.0)], auc=0.75),
    "old": results("", auc=0.5),
    "more": results("click", [("watch", 2.5), ("stay", 7.0)], auc=0.8),
}


def test_results_without_a_name_are_those_of_the_first_label():
    assert label_names(RUNS) == ["click", "watch", "stay"]
    assert list(with_label(RUNS, "click")) == ["joint", "old", "more"]
    assert list(with_label(RUNS, "watch")) == ["joint", "more"]
    assert label_names({"old": RUNS["old"]}) == [""]


def test_a_table_holds_the_runs_that_have_the_label():
    rows = comparison_rows(RUNS, metric="rmse", label="watch")
    assert rows[:2] == [
        ["scenario", "joint", "more", "difference", "rows"],
        ["all", "3.0000", "2.5000", "-0.5000", "10"],
    ]
    assert comparison_rows(RUNS)[1] == ["all", "0.7500", "0.5000", "0.8000", "10"]


@pytest.mark.parametrize("label", ["stay", "click"])
def test_a_table_has_a_column_for_every_run_with_the_label(label):
    found = comparison_rows(RUNS, metric="rmse", label=label)[0]
    assert set(found[1:-1]) == set(with_label(RUNS, label))
