"""Evaluated runs without a training."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from msrec.data.schema import Scenario, Schema, SparseFeature, SplitRecord
from msrec.launch.evaluation.exact_results import evaluate_predictions
from msrec.launch.evaluation.results import save_results
from msrec.launch.evaluation.scored_rows.commit import Commit, write_commit

NAMES = ["search", "feed", "friends"]


SCHEMA = Schema(
    name="short-video",
    description="an app",
    scenarios=[Scenario(name=n, description=n) for n in NAMES],
    tables={"user": 10},
    sparse=[SparseFeature(name="user_id", table="user")],
    labels=["click"],
    split=SplitRecord(method="random"),
    num_users=9,
    num_items=1,
)


def make_run(folder, noise, meta, rows=3_000, seed=0):
    """Writes a run folder as training and evaluation do; less noise is a better model."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1.2, 1.4, rows)
    truth = (1 / (1 + np.exp(-logit))).astype(np.float32)
    label = (rng.random(rows) < truth).astype(np.float32)
    score = (1 / (1 + np.exp(-logit - rng.normal(0, noise, rows)))).astype(np.float32)
    predictions = folder / "predictions" / "test"
    predictions.mkdir(parents=True)
    table = {"row_id": np.arange(rows), "scenario": rng.choice(3, rows, p=[0.2, 0.7, 0.1])}
    table |= {
        "user": rng.integers(0, 90, rows),
        "label": label,
        "weight": np.ones(rows, np.float32),
    }
    pq.write_table(
        pa.table(table | {"score": score, "p_click": truth}), predictions / "part-0.parquet"
    )
    commit = Commit(rows=rows, split="test", checkpoint="step-900", dataset=SCHEMA.name)
    write_commit(predictions, commit)
    save_results(evaluate_predictions(predictions, SCHEMA), folder)
    config = {"dataset": "data", "run_id": folder.name, "meta": {"user": meta, "rank": 16}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13.0+cpu", "msrec": "0.1.0"}))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(50, 901, 50):
            fade = np.exp(-step / 250)
            loss = 0.5 + 0.2 * fade + noise / 20 + rng.normal(0, 0.004)
            metrics = {"loss": loss, "auc/all": 0.78 - 0.2 * fade - noise / 20, "rows_per_s": 1e5}
            write_line(file, step, "train", metrics)
            if step % 150 == 0:
                by_name = {
                    f"auc/scenario={n}": 0.77 - 0.2 * fade - k / 50 for k, n in enumerate(NAMES)
                }
                valid = {"log_loss/all": loss + 0.01, "auc/all": 0.77 - 0.2 * fade - noise / 20}
                write_line(file, step, "valid", valid | by_name)
    return folder


def write_line(file, step, split, metrics):
    file.write(json.dumps({"step": step, "epoch": 0, "split": split, "metrics": metrics}) + "\n")
