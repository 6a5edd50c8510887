"""Parts of progressive validation: ids of grown tables, results of several labels."""

import numpy as np
import pyarrow as pa
from tiny import tiny_schema

from msrec.data.labels import LabelScale
from msrec.launch.daily.progressive import KnownIds, save_progressive
from msrec.launch.evaluation.results import load_results
from msrec.model.metrics.definitions import Metrics, ScenarioMetrics
from msrec.model.tasks import Task


def test_new_ids_of_grown_tables_become_row_0():
    columns = {
        "user_id": np.array([0, 4, 5, 40], np.int32),
        "item_id": np.array([60, 1, 2, 3], np.int32),
        "genres": pa.array([[1, 6], [], [3], [2, 5]], pa.list_(pa.int32())),
    }
    known = KnownIds(tiny_schema(), {"user_id": 5, "genre": 3})
    changed = known.apply(columns, np.arange(4), 0)
    assert changed["user_id"].tolist() == [0, 4, 0, 0]
    assert changed["item_id"].tolist() == [60, 1, 2, 3]
    assert changed["genres"].to_pylist() == [[1, 0], [], [0], [2, 0]]
    assert changed["user_id"].dtype == np.int32
    assert columns["user_id"].tolist() == [0, 4, 5, 40]


def test_results_have_the_metrics_of_every_label(tmp_path):
    click = ScenarioMetrics(Metrics(9, 4, auc=0.7), {"feed": Metrics(5, 2, auc=0.6)})
    watch = ScenarioMetrics(Metrics(8, rmse=2.5), {"feed": Metrics(4, rmse=3.5)})
    tasks = [Task("click"), Task("watch", scale=LabelScale(low=0, high=9, mean=2, std=1))]
    save_progressive(tmp_path, tiny_schema(), "step-00000007", tasks, [click, watch])
    results = load_results(tmp_path / "predictions/progressive")
    assert (results.split, results.checkpoint, results.rows) == ("progressive", "step-00000007", 9)
    assert results.named()["auc/scenario=feed"] == 0.6
    assert results.named()["rmse/label=watch/all"] == 2.5
    assert [part.kind for part in results.by_label.values()] == ["binary", "regression"]
