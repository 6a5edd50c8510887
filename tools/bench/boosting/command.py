"""`msrec bench lightgbm`: boosted trees over features of the same histories, as an opponent."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from msrec.data.histories.index import HistoryIndex
from msrec.data.io.outputs import check_output, new_folder
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import local_path
from msrec.data.schema import Schema
from msrec.launch.config.run_config import RunConfig, load_config
from msrec.launch.evaluation.exact_results import compute_results
from msrec.launch.evaluation.results import ResultHistory, Results, save_results
from msrec.launch.evaluation.scored_rows.commit import PREDICTIONS, Commit, write_commit
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.knowledge_inputs import item_sources
from msrec.launch.reporting.result_tables import format_value, results_tables
from msrec.tools.bench.boosting.history_features import (
    FeatureTable,
    HistoryFeatures,
    feature_tables,
)
from msrec.tools.bench.harness.report import console

NAME = "lightgbm"
PATIENCE = 50
"""Trees without a better validation AUC after which training stops."""
SHOWN_FEATURES = 10
"""Features that are printed, those with the largest gain."""


def bench_lightgbm(
    dataset: Annotated[
        Path, typer.Argument(help="Dataset folder with histories.", parser=local_path)
    ],
    protocol: Annotated[
        Literal["stream", "frozen"], typer.Option(help="Histories, see `msrec histories`.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            help="Config of a run, whose llm.sources give item vectors and whose sequence.max_len "
            "is used.",
            show_default="no item vectors",
        ),
    ] = None,
    popularity: Annotated[
        bool,
        typer.Option("--popularity/--no-popularity", help="Count the earlier events of the item."),
    ] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Most trees.")] = 2000,
    leaves: Annotated[int, typer.Option(min=2, help="Leaves of a tree.")] = 63,
    lr: Annotated[float, typer.Option(min=1e-4, help="Learning rate.")] = 0.05,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 is all cores.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the trees.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder of predictions to write, for `msrec compare`.")
    ] = Path("runs/lightgbm"),
) -> None:
    """LightGBM over the same histories, an opponent in AUC.

    Features are similarities of the item to the user's earlier items (by the item vectors of
    --config and by words), and counts of earlier events of the user and the item. Training stops
    early by the AUC of the validation split. The test split is evaluated as by `msrec evaluate`.
    Needs the extra `bench`.

    Raises:
        FileNotFoundError: the dataset has no such histories, or the store lacks a source.
        ValueError: lightgbm is not installed, or `out` holds something else.
    """
    _require_lightgbm()
    check_output(out, PREDICTIONS, [dataset])
    run = load_config(config, [f"dataset={dataset}", f"sequence.protocol={protocol}"])
    started = time.monotonic()
    index = HistoryIndex.open(dataset, protocol)
    features = HistoryFeatures(
        dataset, index, item_sources(run), run.sequence.max_len, popularity=popularity
    )
    tables = dict(feature_tables(features))
    computed_s = time.monotonic() - started
    params = {
        **{"objective": "binary", "metric": "auc", "num_leaves": leaves, "learning_rate": lr},
        **{"seed": seed, "num_threads": threads, "deterministic": True, "verbosity": -1},
        **{"feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1},
        "min_data_in_leaf": 50,
    }
    booster = _train(tables["train"], tables["valid"], params, rounds)
    trained_s = time.monotonic() - started - computed_s
    score = booster.predict(tables["test"].values).astype(np.float32)
    results = _evaluate(out, features.schema, run, index, tables["test"], score)
    for table in results_tables(results):
        console.print(table)
    _print_gains(booster, tables["test"].names)
    metrics = results.metrics.all
    console.print(
        f"test AUC {format_value(metrics.auc)}, GAUC {format_value(metrics.gauc)}: "
        f"{booster.best_iteration} trees over {len(tables['test'].names)} features; features "
        f"{computed_s:.0f} s, training {trained_s:.0f} s. Wrote {out}"
    )


def _require_lightgbm() -> None:
    try:
        import lightgbm as _  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        raise ValueError(
            "bench lightgbm needs lightgbm, which is not installed: pip install 'msrec[bench]' or "
            "pip install lightgbm."
        ) from None


def _train(train: FeatureTable, valid: FeatureTable, params: dict[str, Any], rounds: int) -> Any:
    """Returns the trees with the best AUC of the validation split."""
    import lightgbm

    names = [f"f{number}" for number in range(len(train.names))]  # it refuses commas in names
    options = {"feature_name": names, "categorical_feature": ["f0"], "free_raw_data": True}
    data = lightgbm.Dataset(train.values, train.label, params={"verbosity": -1}, **options)
    checked = lightgbm.Dataset(valid.values, valid.label, reference=data, **options)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    return lightgbm.train(params, data, rounds, valid_sets=[checked], callbacks=[stop])


def _evaluate(
    out: Path,
    schema: Schema,
    run: RunConfig,
    index: HistoryIndex,
    test: FeatureTable,
    score: np.ndarray,
) -> Results:
    """Writes the predictions of the test split and their metrics."""
    keys = read_parquet(run.dataset / "users.parquet", ["user_key"])["user_key"]
    size = len(score)
    table = pa.table(
        {
            "row_id": np.arange(size),
            "scenario": test.scenario.astype(np.int32),
            "user": keys.take(pa.array(test.user)),
            "label": test.label,
            "weight": np.ones(size, np.float32),
            "score": score,
        }
    )
    commit = Commit(rows=size, split="test", checkpoint=NAME, dataset=schema.name)
    manifest = index.manifest
    history = ResultHistory(
        protocol=manifest.protocol, events=manifest.events, max_len=run.sequence.max_len
    )
    with new_folder(out, PREDICTIONS, [run.dataset], overwrite=True) as folder:
        pq.write_table(table, folder / "part-00000.parquet")
        write_commit(folder, commit)
        results = compute_results(load_predictions(folder), schema)
        results = results.model_copy(update={"history": history})
        save_results(results, folder)
    return results


def _print_gains(booster: Any, names: list[str]) -> None:
    gains = booster.feature_importance("gain")
    total = max(gains.sum(), 1e-12)
    best = np.argsort(-gains)[:SHOWN_FEATURES]
    shown = ", ".join(f"{names[at]} {gains[at] / total:.0%}" for at in best)
    console.print(f"largest gains: {shown}")
