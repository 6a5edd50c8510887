"""Exports of runs that read ordered histories: parity, histories of users and of requests.

The runs have interest blocks, a sequence encoder, or both.
"""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from interest_runs import MAX_LEN, interest_config, interest_root
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
from msrec.launch.serving.delta.apply import apply_delta
from msrec.launch.serving.delta.make import write_delta
from msrec.launch.serving.export import export
from msrec.launch.serving.http.batcher import Limits
from msrec.launch.serving.http.server import create_app
from msrec.launch.serving.parity import compare_with_run
from msrec.launch.serving.request_rows import RequestRows
from msrec.launch.serving.score_file import score_file
from msrec.launch.serving.scorer import Scorer
from msrec.launch.serving.sequence_files import ItemTables
from msrec.launch.trained_run import open_run, unwrapped
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
    "din": ("stream", ["sequence.encoder=din", "interest.enabled=false"]),
    "sim": ("frozen", ["sequence.encoder=sim", "meta.user=true"]),
    "bst": ("stream", ["sequence.encoder=bst", "sequence.num_layers=2"]),
    "hstu": ("stream", ["sequence.encoder=hstu", "interest.enabled=false"]),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Folder of a dataset, its store, raw rows, and the runs and exports that `name` makes."""
    root = tmp_path_factory.mktemp("sequences")
    raw = interest_root(root)
    tiny_store(root / "data", root / "store")
    raw.tail(600).write_parquet(root / "test.parquet")
    return root


@pytest.fixture
def name(app, request):
    """Name of one of `RUNS`, which is trained and exported when a test first needs it."""
    name = request.param
    if not (app / name).exists():
        protocol, options = RUNS[name]
        config = interest_config(app, name, *options, protocol=protocol)
        run_ranks(fit, 1, config)
        save_config(config, config.run_dir / "config.yaml")
        with process_group("cpu") as process:
            evaluate(config.run_dir, process)
            export(config.run_dir, app / name, process, tables="float16", compiled=False)
    return name


@pytest.fixture
def scorer(app, name):
    return Scorer(app / name)


def of_runs(*names):
    return pytest.mark.parametrize("name", names, indirect=True)


@of_runs(*RUNS)
def test_scores_of_an_export_are_those_of_its_run(app, name):
    """Tables are float16, which moves scores a little; vectors and histories are exact."""
    saved = json.loads((app / name / "export.json").read_text())["parity"]
    assert saved["rows"] == 600
    assert saved["largest_difference"] < 5e-4
    of_run, of_export = saved["auc"]["label"]
    assert abs(of_run - of_export) < 5e-5


@of_runs("bare")
def test_an_export_is_compared_with_the_events_before_each_row(app, scorer, name, monkeypatch):
    """The export holds later events too: with those, scores would differ."""
    monkeypatch.setattr(RequestRows, "with_histories", lambda rows, histories: rows)
    monkeypatch.setattr(parity, "LARGEST_AUC_DIFFERENCE", 1.0)
    monkeypatch.setattr(parity, "LARGEST_MEAN_DIFFERENCE", 1.0)
    with process_group("cpu") as process:
        run = open_run(app / "runs" / name, process)
        run.model.eval()
        assert compare_with_run(run, scorer, process, "test").mean_difference > 0.01


@of_runs(*RUNS)
def test_files_hold_vectors_and_the_newest_events(app, name):
    sequence = json.loads((app / name / "export.json").read_text())["sequence"]
    protocol, _ = RUNS[name]
    index = HistoryIndex.open(app / "data", protocol)
    assert sequence["protocol"] == protocol
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


@of_runs(*RUNS)
def test_tables_by_item_hold_the_vectors_of_the_run(app, scorer, name):
    """Those of the sources are exact, float16 rounds the learned ones; unknown items have zeros."""
    with process_group("cpu") as process:
        run = open_run(app / "runs" / name, process)
    vectors = [torch.from_numpy(each.rows(np.arange(20))) for each in run.knowledge.item_sources]
    learned = unwrapped(run.model).ranker.sequence_items
    if learned is not None:
        (weight,) = learned.ebc.state_dict().values()
        vectors.append(weight.local_shards()[0].tensor.half())
    tables = scorer.manifest.sequence.tables
    found = ItemTables(app / name, tables).gather(np.arange(20))
    assert len(found) == len(vectors)
    for one, expected in zip(found, vectors, strict=True):
        torch.testing.assert_close(one[:-1], expected.float(), atol=0, rtol=0)
        assert one[:-1].std() > 0.01
        assert not one[-1].any()


@of_runs(*RUNS)
def test_rows_are_scored_with_the_events_of_the_export(app, scorer, name, tmp_path):
    """`predict` of rows without a timestamp gives each user the same events."""
    rows = pl.read_parquet(app / "test.parquet").drop("label", "time")
    new = rows.head(2).with_columns(user_key=pl.Series(["nobody", "u1"]), item_key=70001)
    rows = pl.concat([rows, new.select(rows.columns)], how="vertical_relaxed")
    rows.write_parquet(tmp_path / "rows.parquet")
    with process_group("cpu") as process:
        run = open_run(app / "runs" / name, process)
        predict_files(run, process, [to_path(tmp_path / "rows.parquet")], tmp_path / name)
    expected = pq.read_table(tmp_path / name)["score"].to_numpy()
    score_file(scorer, tmp_path / "rows.parquet", tmp_path / f"{name}.parquet")
    scores = pq.read_table(tmp_path / f"{name}.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores, expected, atol=5e-4)
    encoded = scorer.encoder.encode_table(rows.to_arrow(), "rows")
    alone = [scorer.score(encoded.cut(row, row + 1)) for row in range(595, 602)]
    together = scorer.score(encoded)
    np.testing.assert_array_equal(together[:, 0], scores)
    np.testing.assert_allclose(np.concatenate(alone), together[595:], atol=1e-6)
    parts = [encoded.cut(start, start + 7) for start in range(0, 602, 7)]
    np.testing.assert_allclose(scorer.score(RequestRows.join(parts)), together, atol=1e-6)
    assert np.std(expected) > 0.05


@of_runs("bare")
def test_plain_files_with_timestamps_get_the_scores_of_evaluation(app, name, tmp_path):
    with process_group("cpu") as process:
        run = open_run(app / "runs" / name, process)
        predict_files(run, process, [to_path(app / "test.parquet")], tmp_path / "out")
    evaluated = load_predictions(app / "runs" / name / "predictions" / "test")
    expected = evaluated.score[np.argsort(evaluated.row_id)]
    scores = pq.read_table(tmp_path / "out")["score"].to_numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@of_runs("bare", "hstu")
def test_the_compiled_program_gives_the_same_scores(app, scorer, name, tmp_path):
    with process_group("cpu") as process:
        export(app / "runs" / name, tmp_path / "compiled", process, tables="float16")
    compiled = Scorer(tmp_path / "compiled")
    assert compiled.is_compiled
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    for part in (table, table.slice(0, 1)):
        rows = compiled.encoder.encode_table(part, "rows")
        np.testing.assert_allclose(compiled.score(rows), scorer.score(rows), atol=1e-5)


@of_runs("bst")
def test_int8_tables_by_item_move_scores_a_little_and_are_part_of_a_delta(app, name, tmp_path):
    checkpoints = sorted((app / "runs" / name / "checkpoints").glob("step-*"))
    with process_group("cpu") as process:
        for number, checkpoint in enumerate(checkpoints):
            options = {"checkpoint": checkpoint, "compiled": False}
            made = export(app / "runs" / name, tmp_path / str(number), process, **options)
    assert [table.kind for table in made.sequence.tables] == ["float16", "float16", "int8"]
    assert 0 < made.parity.largest_difference < 0.01
    first, last = (
        np.load(tmp_path / number / "item-tables" / "sequence_item.npy") for number in ("0", "1")
    )
    assert (first != last).any(axis=1).all()  # a run changes the vectors of all items
    delta = write_delta(tmp_path / "0", tmp_path / "1", tmp_path / "delta")
    assert {name for name in delta.parts if name.startswith("item-tables")} == {
        "item-tables/sequence_item.npy"
    }
    apply_delta(tmp_path / "0", tmp_path / "delta", tmp_path / "made")
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    scores, of_delta = (
        scorer.score(scorer.encoder.encode_table(table, "rows"))
        for scorer in (Scorer(tmp_path / "1"), Scorer(tmp_path / "made"))
    )
    np.testing.assert_array_equal(of_delta, scores)


@of_runs(*RUNS)
def test_the_benchmark_compares_the_run_with_its_export(app, scorer, name, monkeypatch):
    monkeypatch.setattr(bench, "SIZES", (1, 4))
    scored = {}

    def record(cases, repeats, warm_up):
        with torch.no_grad():
            scored[len(scored)] = {case: call() for case, call in cases.items()}
        return {}

    monkeypatch.setattr(bench, "interleaved", record)
    _, lines = bench._direct_calls(app / "runs" / name, scorer, 1)
    assert len(lines) == 4
    for cases in scored.values():
        run = cases[bench.TORCHREC][1][1][:, 0]
        torch.testing.assert_close(cases[bench.PLAIN][0][:, 0], run)


# Histories in requests ---------------------------------------------------------------------------


in_requests = of_runs("bare", "din")


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


def stored_events(app, name, user):
    """Returns the events of a user in an export, as a request carries them."""
    histories = app / name / "histories"
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


@in_requests
def test_a_request_with_the_stored_history_gets_the_same_scores(app, scorer, rows, name):
    events = stored_events(app, name, 29)
    own = [row | {"user_key": "u29"} for row in rows]
    without = answer(scorer, {"rows": own})
    carried = answer(scorer, {"rows": own, "history": events})
    assert without.json().keys() == {"scores"}
    np.testing.assert_allclose(carried.json()["scores"], without.json()["scores"], atol=1e-6)
    assert carried.json()["history"] == {"used": len(events), "cut": 0, "unknown": 0}


@in_requests
def test_only_the_newest_known_events_of_a_request_count(scorer, rows):
    events = [
        {"item_id": n * 10, "scenario": n % 2, "label": n % 2, "note": "ignored"} for n in range(9)
    ]
    unknown = {"item_id": 70001, "scenario": "feed", "label": 1}
    full = answer(scorer, {"rows": rows, "history": [unknown, *events, unknown]}).json()
    assert full["history"] == {"used": MAX_LEN, "cut": 3, "unknown": 2}
    newest = answer(scorer, {"rows": rows, "history": events[3:]}).json()
    assert newest["history"] == {"used": MAX_LEN, "cut": 0, "unknown": 0}
    assert newest["scores"] == full["scores"]
    none = answer(scorer, {"rows": rows, "history": []}).json()
    assert none["history"] == {"used": 0, "cut": 0, "unknown": 0}
    assert none["scores"] != full["scores"]
    stranger = [row | {"user_key": "nobody", "age": row["age"]} for row in rows]
    np.testing.assert_allclose(
        answer(scorer, {"rows": stranger}).json()["scores"],
        answer(scorer, {"rows": stranger, "history": []}).json()["scores"],
        atol=1e-6,
    )


GOOD = {"item_id": 10, "scenario": "feed", "label": 1}


@of_runs("bare")
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
def test_a_bad_event_is_refused_with_its_position(scorer, rows, event, message):
    refused = answer(scorer, {"rows": rows, "history": [GOOD, event]})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("request: event 1 of the history")
    assert message in refused.json()["detail"]


@of_runs("bare")
def test_a_history_must_be_a_list(scorer, rows):
    refused = answer(scorer, {"rows": rows, "history": {"item_id": 1}})
    assert refused.status_code == 422
    assert "history must be a list of events" in refused.json()["detail"]
