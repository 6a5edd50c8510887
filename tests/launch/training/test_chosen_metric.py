"""The metric that chooses the best checkpoint, by its name; and the line of a validation."""

import pytest

from msrec.data.labels import LabelScale
from msrec.launch.training.chosen_metric import ChosenMetric, choose_metric
from msrec.launch.training.metric_logger import _summary
from msrec.model.tasks import Task

TASKS = [Task("click"), Task("a/b"), Task("watch", LabelScale(low=0, high=9, mean=1, std=1))]
SCENARIOS = ["feed", "x/y"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, ("auc/all", "auc", 0, 1)),
        ("log_loss", ("log_loss/all", "log_loss", 0, -1)),
        ("auc/scenario=x/y", ("auc/scenario=x/y", "auc", 0, 1)),
        ("auc/label=a/b", ("auc/label=a/b/all", "auc", 1, 1)),
        ("rmse/label=watch/scenario=feed", ("rmse/label=watch/scenario=feed", "rmse", 2, -1)),
    ],
)
def test_a_metric_is_found_by_its_name(name, expected):
    assert choose_metric(name, TASKS, SCENARIOS) == ChosenMetric(*expected)


def test_impressions_and_a_formula_bring_more_metrics():
    more = {"has_impressions": True, "has_formula": True}
    found = choose_metric("combined_ndcg_by_impression/label=a/b", TASKS, SCENARIOS, **more)
    name = "combined_ndcg_by_impression/label=a/b/all"
    assert found == ChosenMetric(name, "ndcg_by_impression", 1, 1, is_combined=True)
    assert found.needs_rows
    for name in ("combined_log_loss", "combined_rmse/label=watch"):
        with pytest.raises(ValueError, match=f"got '{name}'"):
            choose_metric(name, TASKS, SCENARIOS, **more)


def test_a_run_of_a_number_is_judged_by_its_rmse():
    assert choose_metric(None, TASKS[2:], SCENARIOS).name == "rmse/all"


@pytest.mark.parametrize(
    "name",
    [
        *("acu", "rmse", "calibration", "rows", "auc/label=watch", "auc/label=click"),
        *("auc/scenario=shop", "gauc_by_impression", "combined_gauc"),
    ],
)
def test_other_names_are_refused_with_near_ones(name):
    with pytest.raises(ValueError, match=f"got '{name}', near it are [a-z]"):
        choose_metric(name, TASKS, SCENARIOS)


def test_names_with_slashes_are_shown_whole():
    metrics = {
        **{"loss": 0.5, "auc/all": 0.7, "log_loss/all": 0.4, "auc/scenario=x/y": 0.6},
        **{"auc/label=a/b/all": 0.8, "log_loss/label=a/b/all": 0.2, "rmse/label=watch/all": 3.0},
    }
    expected = "AUC 0.7000  (x/y 0.6000)  log loss 0.4000  a/b AUC 0.8000  watch RMSE 3.0000"
    assert _summary(metrics, by_scenario=True) == expected
