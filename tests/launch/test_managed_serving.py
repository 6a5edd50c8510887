"""An export with managed features scores as its run, with the map in its files."""

from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from raw_rows import joined, raw_tables

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.features.hashed_values import Managed
from msrec.data.features.value_counts import ValueCounts
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import process_group
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predict_files import predict_files
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.serving.export import export
from msrec.launch.serving.score_file import score_file
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import open_run, unwrapped
from msrec.launch.training.trainer import train_run

pytestmark = pytest.mark.slow

MANAGED = {"user_id": Managed(12), "query": Managed(6)}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Folder of a dataset, its run, its export and the raw rows of its test split."""
    root, raw = tmp_path_factory.mktemp("managed"), raw_tables(rows=3000)
    # In the order of their users, all test rows would have new ones.
    mixed = raw.interactions.sample(fraction=1, shuffle=True, seed=0)
    raw = replace(raw, interactions=mixed.with_columns(time=pl.int_range(3000)))
    split = SplitChoice("time", fractions=(0.7, 0.1, 0.2))
    write_dataset(raw, root / "data", split, table_kinds=MANAGED)
    config = load_config(
        None,
        [
            *(f"dataset={root}/data", f"run_root={root}", "run_id=run", "embeddings.dim=8"),
            *("trainer.global_batch=96", "trainer.epochs=3", "embeddings.lr=0.05"),
            *("embeddings.eviction=lru", "embeddings.eviction_every_steps=5", "scale=0.9"),
        ],
    )
    with process_group("cpu") as process:
        train_run(config, process)
        evaluate(config.run_dir, process)
        export(config.run_dir, root / "export", process, compiled=False)
    joined(raw).tail(600).write_parquet(root / "test.parquet")
    return root


def unknown_values(app, name, keys):
    known = pq.read_table(app / "export/managed" / f"{name}.parquet")["id"].to_numpy()
    numbers = MANAGED[name].encode(keys).to_numpy()
    return int((~np.isin(numbers, known) & (numbers != 0)).sum())


def test_an_export_scores_as_its_run_and_counts_values_without_a_row(app, tmp_path):
    scorer = Scorer(app / "export")
    score_file(scorer, app / "test.parquet", tmp_path / "out.parquet")
    evaluated = load_predictions(app / "run/predictions/test")
    expected = evaluated.score[np.argsort(evaluated.row_id)]
    scored = pl.read_parquet(tmp_path / "out.parquet")["score"]
    np.testing.assert_allclose(scored, expected, atol=2e-3)
    assert np.std(expected) > 0.05  # a constant would pass
    rows, counts = pl.read_parquet(app / "test.parquet"), scorer.encoder.counts.take()
    unknown = unknown_values(app, "user_id", rows["user_key"])
    assert counts["user_id"] == ValueCounts(600, unknown, 0)
    assert 0 < unknown < 600
    missing = rows["query"].null_count()
    of_query = unknown_values(app, "query", rows["query"])
    assert counts["query"] == ValueCounts(600 - missing, of_query, missing)


def test_predictions_of_raw_rows_count_values_without_a_row(app, tmp_path):
    with process_group("cpu") as process:
        run = open_run(app / "run", process)
        of_map, _ = unwrapped(run.model).ranker.embeddings.managed.maps
        summary = predict_files(run, process, [app / "test.parquet"], tmp_path / "out")
        ids, rows = of_map.ids_and_rows()
    in_files = pq.read_table(app / "export/managed/user_id.parquet")
    assert in_files["id"].to_pylist() == ids.tolist()
    assert in_files["row"].to_pylist() == rows.tolist()
    keys = pl.read_parquet(app / "test.parquet")["user_key"]
    unknown = unknown_values(app, "user_id", keys)
    assert summary.counts["user_id"] == ValueCounts(600, unknown)
    assert f"user_id: {unknown} of 600 values unknown" in summary.sentence(tmp_path)
