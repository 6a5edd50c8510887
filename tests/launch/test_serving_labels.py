"""Export, scored files and answers of the server for a run with several labels."""

import asyncio
import json

import httpx
import numpy as np
import polars as pl
import pytest
import torch
from label_tables import raw_columns, raw_folder
from ranks import run_ranks

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.calibrate import calibrate
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.serving.export import export
from msrec.launch.serving.http.server import create_app
from msrec.launch.serving.score_file import score_file
from msrec.launch.serving.scorer import Scorer
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow

LABELS = ["click", "like", "buy", "watch"]


def train_calibrate_export(rank, world_size, root, method):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    options = [
        *(f"dataset={root}/data", f"run_root={root}/runs", f"run_id={method}"),
        *("trainer.global_batch=32", "trainer.epochs=4", "embeddings.dim=8", "embeddings.lr=0.1"),
        *(f"objective.labels={LABELS}", "objective.score=click^0.5 * watch", "backbone.name=mmoe"),
        "optimizer.lr=0.01",
    ]
    config = load_config(None, options)
    config.run_dir.mkdir(parents=True)
    save_config(config, config.run_dir / "config.yaml")
    Trainer(config, process).fit()
    if method != "none":
        calibrate(config.run_dir, process, method)
    evaluate(config.run_dir, process)
    export(config.run_dir, root / method, process, tables="float16", compiled=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    raw = raw_folder(folder / "raw")
    write_dataset(read_tables(raw), folder / "data", SplitChoice("time", fractions=(0.6, 0.2, 0.2)))
    for method in ("none", "isotonic", "platt"):
        run_ranks(train_calibrate_export, 1, folder, method)
    rows = pl.DataFrame(raw_columns()).tail(80).sort("timestamp")
    rows.select("user_id", "item_id", "scenario").write_parquet(folder / "rows.parquet")
    return folder


@pytest.mark.parametrize("method", ["none", "isotonic", "platt"])
def test_a_scored_file_has_the_scores_of_evaluation(root, tmp_path, method):
    scorer = Scorer(root / method)
    assert scorer.manifest.labels == LABELS
    expected_method = None if method == "none" else method
    assert (scorer.manifest.combined, scorer.manifest.calibration) == (
        "click^0.5 * watch",
        expected_method,
    )
    assert scorer.manifest.parity is not None
    assert scorer.manifest.parity.auc.keys() == {"click", "like", "buy"}
    assert score_file(scorer, root / "rows.parquet", tmp_path / "out.parquet") == 80
    scored = pl.read_parquet(tmp_path / "out.parquet")
    assert scored.columns[3:] == ["score", "score_1", "score_2", "score_3", "combined"]
    predictions = load_predictions(root / "runs" / method / "predictions/test")
    for number, label in enumerate(predictions.labels):
        found = scored[scored.columns[3 + number]].to_numpy()
        np.testing.assert_allclose(found, label.score, rtol=5e-3, atol=2e-3)
        assert np.std(found) > 1e-3  # a constant would pass
    np.testing.assert_allclose(scored["combined"], predictions.combined, rtol=1e-2)
    product = scored["score"].to_numpy() ** 0.5 * scored["score_3"].to_numpy()
    np.testing.assert_allclose(scored["combined"], product, rtol=1e-5)
    assert score_file(scorer, root / "rows.parquet", tmp_path / "out.parquet") == 80  # its own file


def test_the_server_answers_with_all_labels_and_ranks_by_the_formula(root):
    scorer = Scorer(root / "platt")
    app = create_app(scorer)
    rows = pl.read_parquet(root / "rows.parquet").head(5).to_dicts()

    async def ask():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://msrec") as client,
        ):
            return await client.post("/score", content=json.dumps({"rows": rows}))

    answer = asyncio.run(ask()).json()
    expected = scorer.score(scorer.encoder.encode_json(rows, "rows"))
    assert list(answer["labels"]) == LABELS
    for number, label in enumerate(LABELS):
        np.testing.assert_allclose(answer["labels"][label], expected[:, number], rtol=1e-5)
    np.testing.assert_allclose(answer["scores"], expected[:, -1], rtol=1e-5)
