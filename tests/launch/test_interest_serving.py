"""Exports of runs with interest blocks: parity, histories of users, histories in requests."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from interest_runs import MAX_LEN, SOURCES, interest_config, interest_root
from ranks import run_ranks
from tiny import tiny_store
from trainings import fit

from msrec.data.histories.index import HistoryIndex
from msrec.data.io.paths import to_path
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import process_group
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predict_files import predict_files
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.serving import parity
from msrec.launch.serving.export import export
from msrec.launch.serving.http.batcher import Limits
from msrec.launch.serving.http.server import create_app
from msrec.launch.serving.parity import compare_with_run
from msrec.launch.serving.request_rows import RequestRows
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import open_run
from msrec.tools.bench import serve as bench

pytestmark = pytest.mark.slow

RUNS = {
    "bare": ("stream", ["backbone.name=dlrm", "interaction.bottom_dims=[8]"]),
    "full": (
        "frozen",
        [
            *("backbone.name=mmoe", "meta.user=true", "meta.scenario=true", "meta.rank=5"),
            "interest.scenario=true",
        ],
    ),
    "own": ("stream", ["backbone.name=ple", "interest.cross_scenario=false"]),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Folder of a dataset, its store, three runs and their exports."""
    root = tmp_path_factory.mktemp("interest")
    raw = interest_root(root)
    tiny_store(root / "data", root / "store")
    for name, (protocol, options) in RUNS.items():
        config = interest_config(root, name, *options, protocol=protocol)
        run_ranks(fit, 1, config)
        save_config(config, config.run_dir / "config.yaml")
        with process_group("cpu") as process:
            evaluate(config.run_dir, process)
            settings = {"tables": "float16", "compiled": False}
            export(config.run_dir, root / name, process, **settings)
    raw.tail(600).write_parquet(root / "test.parquet")
    return root


@pytest.fixture(scope="module")
def scorers(app):
    return {name: Scorer(app / name) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_scores_of_an_export_are_those_of_its_run(app, name):
    """Tables are float16, which moves scores a little; vectors and histories are exact."""
    saved = json.loads((app / name / "export.json").read_text())["parity"]
    assert saved["rows"] == 600
    assert saved["largest_difference"] < 5e-4
    of_run, of_export = saved["auc"]["label"]
    assert abs(of_run - of_export) < 5e-5


def test_an_export_is_compared_with_the_events_before_each_row(app, scorers, monkeypatch):
    """The export holds later events too: with those, scores would differ."""
    monkeypatch.setattr(RequestRows, "with_histories", lambda rows, histories: rows)
    monkeypatch.setattr(parity, "LARGEST_AUC_DIFFERENCE", 1.0)
    monkeypatch.setattr(parity, "LARGEST_MEAN_DIFFERENCE", 1.0)
    with process_group("cpu") as process:
        run = open_run(app / "runs" / "bare", process)
        run.model.eval()
        assert compare_with_run(run, scorers["bare"], process, "test").mean_difference > 0.01


@pytest.mark.parametrize("name", RUNS)
def test_files_hold_vectors_and_the_newest_events(app, name):
    interest = json.loads((app / name / "export.json").read_text())["interest"]
    protocol, _ = RUNS[name]
    index = HistoryIndex.open(app / "data", protocol)
    assert interest["protocol"] == protocol
    assert list(interest["sources"]) == list(SOURCES)
    arrays = {
        part: np.load(app / name / "histories" / f"{part}.npy")
        for part in ("starts", "items", "scenarios", "labels")
    }
    for user in range(30):
        newest = slice(max(index.starts[user], index.starts[user + 1] - MAX_LEN), None)
        kept = slice(arrays["starts"][user], arrays["starts"][user + 1])
        for part in ("items", "scenarios", "labels"):
            expected = getattr(index, part)[: index.starts[user + 1]][newest]
            np.testing.assert_array_equal(arrays[part][kept], expected)
    assert np.load(app / name / "item-sources" / "made.npy").dtype == np.float16
    assert (app / name / "item-sources" / "org--other.npy").is_file()


def test_rows_are_scored_with_the_events_of_the_export(app, scorers, tmp_path):
    """`predict` of rows without a timestamp gives each user the same events."""
    rows = pl.read_parquet(app / "test.parquet").drop("label", "time")
    new = rows.head(2).with_columns(user_key=pl.Series(["nobody", "u1"]), item_key=70001)
    rows = pl.concat([rows, new.select(rows.columns)], how="vertical_relaxed")
    rows.write_parquet(tmp_path / "rows.parquet")
    for name in RUNS:
        with process_group("cpu") as process:
            run = open_run(app / "runs" / name, process)
            predict_files(run, process, [to_path(tmp_path / "rows.parquet")], tmp_path / name)
        expected = pq.read_table(tmp_path / name)["score"].to_numpy()
        encoded = scorers[name].encoder.encode_table(rows.to_arrow(), "rows")
        np.testing.assert_allclose(scorers[name].score(encoded)[:, 0], expected, atol=5e-4)
        alone = [scorers[name].score(encoded.cut(row, row + 1)) for row in range(595, 602)]
        together = scorers[name].score(encoded)
        np.testing.assert_allclose(np.concatenate(alone), together[595:], atol=1e-6)
        parts = [encoded.cut(start, start + 7) for start in range(0, 602, 7)]
        np.testing.assert_allclose(
            scorers[name].score(RequestRows.join(parts)), together, atol=1e-6
        )
        assert np.std(expected) > 0.05


def test_plain_files_with_timestamps_get_the_scores_of_evaluation(app, tmp_path):
    with process_group("cpu") as process:
        run = open_run(app / "runs" / "bare", process)
        predict_files(run, process, [to_path(app / "test.parquet")], tmp_path / "out")
    evaluated = load_predictions(app / "runs" / "bare" / "predictions" / "test")
    expected = evaluated.score[np.argsort(evaluated.row_id)]
    scores = pq.read_table(tmp_path / "out")["score"].to_numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_the_compiled_program_gives_the_same_scores(app, scorers, tmp_path):
    with process_group("cpu") as process:
        export(
            app / "runs" / "bare", tmp_path / "compiled", process, tables="float16", compiled=True
        )
    compiled = Scorer(tmp_path / "compiled")
    assert compiled.is_compiled
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    for part in (table, table.slice(0, 1)):
        rows = compiled.encoder.encode_table(part, "rows")
        np.testing.assert_allclose(compiled.score(rows), scorers["bare"].score(rows), atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_the_benchmark_compares_the_run_with_its_export(app, scorers, name, monkeypatch):
    monkeypatch.setattr(bench, "SIZES", (1, 4))
    scored = {}

    def record(cases, repeats, warm_up):
        with torch.no_grad():
            scored[len(scored)] = {case: call() for case, call in cases.items()}
        return {}

    monkeypatch.setattr(bench, "interleaved", record)
    _, lines = bench._direct_calls(app / "runs" / name, scorers[name], 1)
    assert len(lines) == 4
    for cases in scored.values():
        run = cases[bench.TORCHREC][1][1][:, 0]
        torch.testing.assert_close(cases[bench.PLAIN][0][:, 0], run)


# Histories in requests ---------------------------------------------------------------------------


@asynccontextmanager
async def client_of(scorer):
    app = create_app(scorer, Limits(max_wait_ms=0))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


def answer(scorer, content):
    async def request():
        async with client_of(scorer) as client:
            return await client.post("/score", json=content)

    return asyncio.run(request())


@pytest.fixture(scope="module")
def rows(app):
    return pl.read_parquet(app / "test.parquet").head(5).drop("time").to_dicts()


def stored_events(app, user):
    """Returns the events of a user in the export, as a request carries them."""
    histories = app / "bare" / "histories"
    starts = np.load(histories / "starts.npy")
    kept = slice(starts[user], starts[user + 1])
    items, scenarios, labels = (
        np.load(histories / f"{part}.npy")[kept].tolist()
        for part in ("items", "scenarios", "labels")
    )
    keys = pq.read_table(app / "data" / "items.parquet")["item_key"].to_pylist()
    names = ("feed", "shop")
    return [
        {"item_id": keys[item], "scenario": names[scenario], "label": label}
        for item, scenario, label in zip(items, scenarios, labels, strict=True)
    ]


def test_a_request_with_the_stored_history_gets_the_same_scores(app, scorers, rows):
    events = stored_events(app, 29)
    own = [row | {"user_key": "u29"} for row in rows]
    without = answer(scorers["bare"], {"rows": own})
    carried = answer(scorers["bare"], {"rows": own, "history": events})
    assert without.json().keys() == {"scores"}
    np.testing.assert_allclose(carried.json()["scores"], without.json()["scores"], atol=1e-6)
    assert carried.json()["history"] == {"used": len(events), "cut": 0, "unknown": 0}


def test_only_the_newest_known_events_of_a_request_count(scorers, rows):
    events = [
        {"item_id": n * 10, "scenario": n % 2, "label": n % 2, "note": "ignored"} for n in range(9)
    ]
    unknown = {"item_id": 70001, "scenario": "feed", "label": 1}
    full = answer(scorers["bare"], {"rows": rows, "history": [unknown, *events, unknown]}).json()
    assert full["history"] == {"used": MAX_LEN, "cut": 3, "unknown": 2}
    newest = answer(scorers["bare"], {"rows": rows, "history": events[3:]}).json()
    assert newest["history"] == {"used": MAX_LEN, "cut": 0, "unknown": 0}
    assert newest["scores"] == full["scores"]
    none = answer(scorers["bare"], {"rows": rows, "history": []}).json()
    assert none["history"] == {"used": 0, "cut": 0, "unknown": 0}
    assert none["scores"] != full["scores"]
    stranger = [row | {"user_key": "nobody", "age": row["age"]} for row in rows]
    np.testing.assert_allclose(
        answer(scorers["bare"], {"rows": stranger}).json()["scores"],
        answer(scorers["bare"], {"rows": stranger, "history": []}).json()["scores"],
        atol=1e-6,
    )


GOOD = {"item_id": 10, "scenario": "feed", "label": 1}


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (7, "event 1 of the history must be an object; found 7"),
        ({"item_id": 10, "label": 1}, "event 1 of the history must have 'scenario'"),
        (GOOD | {"item_id": "x"}, "item_id must be an integer; found 'x'"),
        (GOOD | {"item_id": True}, "item_id must be an integer; found True"),
        (GOOD | {"item_id": 2**70}, "item_id must be an integer that fits int64; found"),
        (GOOD | {"scenario": 2}, "scenario must be one of feed (0), shop (1); found 2"),
        (GOOD | {"scenario": []}, "scenario must be one of feed (0), shop (1); found []"),
        (GOOD | {"label": 2}, "label must be 0 or 1; found 2"),
        (GOOD | {"label": None}, "label must be 0 or 1; found None"),
    ],
)
def test_a_bad_event_is_refused_with_its_position(scorers, rows, event, message):
    refused = answer(scorers["bare"], {"rows": rows, "history": [GOOD, event]})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("request: event 1 of the history")
    assert message in refused.json()["detail"]


def test_a_history_must_be_a_list(scorers, rows):
    refused = answer(scorers["bare"], {"rows": rows, "history": {"item_id": 1}})
    assert refused.status_code == 422
    assert "history must be a list of events" in refused.json()["detail"]
