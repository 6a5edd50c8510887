"""The benchmark's table: means and spreads of what the runs' results say."""

import json
from dataclasses import replace

import pytest

from msrec.launch.metrics import Metrics, ScenarioMetrics
from msrec.launch.results import Results, save_results
from msrec.tools import bench


def make_run(folder, auc, rows_per_s):
    folder.mkdir(parents=True)
    one = Metrics(rows=10, positives=4, auc=auc, log_loss=0.5)
    metrics = ScenarioMetrics(one, {"feed": replace(one, auc=auc - 0.1)})
    save_results(
        Results(dataset="d", split="test", checkpoint="c", rows=10, metrics=metrics), folder
    )
    lines = [
        {"split": "train", "epoch": 0, "metrics": {"rows_per_s": rows_per_s}},
        {"split": "valid", "epoch": 1, "metrics": {"auc/all": auc}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_row_holds_mean_and_spread_over_the_seeds(tmp_path):
    for backbone in bench.BACKBONES:
        for variant in bench.VARIANTS:
            for seed, auc in enumerate((0.80, 0.82)):
                run = bench.Cell(backbone, variant, seed).run_id
                make_run(tmp_path / run, auc, 1000.0 * (seed + 1))
    head, line, *rows = bench._table(tmp_path, seeds=2)
    assert head.startswith(
        "| model | AUC | AUC feed | log loss | log loss feed | rows/s | epochs |"
    )
    assert line.count("---") == head.count("|") - 1
    cells = [cell.strip() for cell in rows[1].split("|")]
    assert cells[1] == "shared_bottom, bare"
    assert cells[2] == "0.8100 ± 0.0141"
    assert cells[3] == "0.7100 ± 0.0141"
    assert cells[6:8] == ["1,500", "1.0"]
    assert len(rows) == 9


def test_a_folder_that_is_no_movielens_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold ratings.dat"):
        bench.bench_movielens(tmp_path, tmp_path / "out", seeds=1, jobs=1)
