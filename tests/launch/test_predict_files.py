"""Tests of `msrec predict`: scores, order of rows, resuming, refusals."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from tiny import replace_column, tiny_dataset, tiny_rows, tiny_store
from upath import UPath

from msrec.data.features.vocabulary import Vocabulary, save_vocabularies
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation import predict_files as module
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predict_files import predict_files
from msrec.launch.trained_run import open_run
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow


def trained(rank, world_size, config):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    Trainer(config, process).fit()
    save_config(config, config.run_dir / "config.yaml")
    evaluate(config.run_dir, process, "test")


def predicted(rank, world_size, run_dir, data, out, keep=None, part_rows=100):
    module.PART_ROWS = part_rows
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    return predict_files(open_run(run_dir, process), process, data, out, keep)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    data, store = folder / "tiny", folder / "store"
    tiny_store(tiny_dataset(data, rows=1000), store)
    values = {"user_id": ("u", 0, 40), "item_id": ("i", 0, 60), "genres": ("g", 1, 7)}
    save_vocabularies(
        {
            n: Vocabulary(pl.Series([f"{k}{i}" for i in range(*of)]))
            for n, (k, *of) in values.items()
        },
        data,
    )
    options = [
        *(f"dataset={data}", f"run_root={folder}", f"llm.store={store}", "faults=skip"),
        *("trainer.global_batch=96", "trainer.eval_batch=70", "trainer.epochs=1"),
        *("embeddings.dim=8", "meta.user=true", "history.of=[user]"),
    ]
    run_ranks(trained, 1, load_config(None, options))
    return folder / "default"


@pytest.fixture(scope="module")
def expected(run):
    """Scores of the test rows in the order of their files, by `msrec evaluate`."""
    table = pq.read_table(run / "predictions/test/part-00000.parquet")
    return table.sort_by("row_id")["score"].to_numpy()


@pytest.fixture
def new_rows(tmp_path):
    """The rows of the test split in two files, without labels and timestamps, with a name."""
    table = tiny_rows(400, seed=2).drop_columns(["label", "timestamp"])
    table = table.append_column("request", pa.array([f"r{i}" for i in range(400)]))
    folder = tmp_path / "new"
    folder.mkdir()
    pq.write_table(table.slice(0, 150), folder / "a.parquet", row_group_size=40)
    pq.write_table(table.slice(150), folder / "b.parquet", row_group_size=64)
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rows_keep_their_order_and_have_the_scores_of_evaluate(
    run, expected, new_rows, tmp_path, ranks
):
    found = run_ranks(predicted, ranks, run, [new_rows], tmp_path / "out", ["request", "user"])[0]
    # 40+40+40, 30; 64+64, 64+58: whole row groups of one file up to 100 rows.
    assert (found.rows, found.parts, found.resumed, found.unscored) == (400, 4, 0, 0)
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["request", "user", "score"]
    assert table["request"].to_pylist() == [f"r{i}" for i in range(400)]
    np.testing.assert_allclose(table["score"].to_numpy(), expected, atol=1e-6)


def test_a_killed_job_resumes_with_the_missing_parts(run, expected, new_rows, tmp_path):
    out = tmp_path / "out"
    run_ranks(predicted, 1, run, [new_rows], out)
    (out / "_COMMIT").unlink()
    (out / "part-00001.parquet").unlink()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    found = run_ranks(predicted, 2, run, [new_rows], out)[0]
    assert (found.parts, found.resumed) == (4, 3)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (out / "_COMMIT").is_file()
    np.testing.assert_allclose(pq.read_table(out)["score"].to_numpy(), expected, atol=1e-6)


def test_remote_files_and_a_remote_folder(run, expected, new_rows):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in new_rows.iterdir():
        memory.pipe_file(f"/new/{path.name}", path.read_bytes())

    def work(rank, world_size):
        predicted(rank, world_size, run, [UPath("memory://new")], UPath("memory://out"), ["item"])
        return {path: memory.cat_file(path) for path in memory.ls("/out", detail=False)}

    written = run_ranks(work, 1)[0]
    parts = [pq.read_table(pa.BufferReader(written[p])) for p in sorted(written) if "part" in p]
    np.testing.assert_allclose(pa.concat_tables(parts)["score"].to_numpy(), expected, atol=1e-6)
    assert "/out/_COMMIT" in written


def test_a_row_that_breaks_the_schema_has_no_score_and_is_counted(
    run, expected, new_rows, tmp_path
):
    items = tiny_rows(400, seed=2)["item_id"].to_numpy()[:150].copy()
    items[7] = 61
    replace_column(new_rows / "a.parquet", "item_id", pa.array(items))
    found = run_ranks(predicted, 2, run, [new_rows], tmp_path / "out")[0]
    assert found.unscored == 1
    assert found.reasons == {"item_id: an id must be in [0, 61)": 1}
    table = pq.read_table(tmp_path / "out")
    assert table["score"].is_null().to_numpy().nonzero()[0].tolist() == [7]
    others = np.delete(np.arange(400), 7)
    scores = table["score"].to_numpy()[others]
    np.testing.assert_allclose(scores, expected[others], atol=1e-6)


def refusal(run, data, out, keep=None):
    with pytest.raises(AssertionError) as error:
        run_ranks(predicted, 1, run, data, out, keep)
    return str(error.value)


def test_requests_that_do_not_fit_give_a_clear_error(run, new_rows, tmp_path):
    out = tmp_path / "out"
    assert "must be a Parquet file or a folder" in refusal(run, [tmp_path / "nowhere"], out)
    assert "city are not among user, item" in refusal(run, [new_rows], out, ["user", "city"])
    assert "besides score, each once; got score" in refusal(run, [new_rows], out, ["score"])
    assert not out.exists()
    run_ranks(predicted, 1, run, [new_rows], out, ["user"])
    assert "_request.json has others" in refusal(run, [new_rows], out, ["item"])
    assert "must hold _request.json" in refusal(run, [new_rows], new_rows)


@pytest.mark.parametrize("ranks", [1, 2])
def test_raw_rows_have_the_scores_of_their_encoded_rows(run, expected, tmp_path, ranks):
    """User i of `tiny_dataset` has the key ui; its embedding is row i + 1, of the value ui."""
    table = tiny_rows(400, seed=2)
    users, items = ([f"{n[0]}{i}" for i in table[n].to_pylist()] for n in ("user", "item"))
    genres = [[f"g{g}" for g in genres] for genres in table["genres"].to_pylist()]
    names = ("search", "feed", "shop")
    raw = {
        "user_key": [*users, "new"],
        "item_key": [*items, "i1"],
        "scenario": [*(names[s] for s in table["scenario"].to_pylist()), "feed"],
        "genres": [*genres, ["g1", "unheard of"]],
        "price": [*table["price"].to_pylist(), 0.0],
    }
    pq.write_table(pa.table(raw), tmp_path / "raw.parquet", row_group_size=64)
    found = run_ranks(predicted, ranks, run, [tmp_path / "raw.parquet"], tmp_path / "out")[0]
    assert (found.rows, found.unscored) == (401, 0)
    scored = pq.read_table(tmp_path / "out")
    assert scored.column_names == ["user_key", "item_key", "scenario", "score"]
    assert scored["user_key"].to_pylist() == raw["user_key"]
    np.testing.assert_allclose(scored["score"].to_numpy()[:400], expected, atol=1e-6)
    assert found.counts["user_key"] == (401, 1, 0)
    assert found.counts["genres"] == (sum(map(len, raw["genres"])), 1, 0)
    assert "user_key: 1 of 401 values unknown (0.2%)" in found.sentence(tmp_path / "out")
    raw["price"][7] = float("nan")
    pq.write_table(pa.table(raw), tmp_path / "raw.parquet")
    message = refusal(run, [tmp_path / "raw.parquet"], tmp_path / "bad")
    assert "raw.parquet: column 'price'" in message
    assert "row 7" in message


def test_keys_may_have_the_names_of_the_converted_tables(run, tmp_path):
    table = tiny_rows(50, seed=2)
    users, items = ([f"{n[0]}{i}" for i in table[n].to_pylist()] for n in ("user", "item"))
    rest = {"scenario": ["feed"] * 50, "genres": [["g1"]] * 50, "price": [0.5] * 50}
    scores = []
    for user, item in (("user_key", "item_key"), ("user_id", "item_id")):
        path = tmp_path / f"{user}.parquet"
        pq.write_table(pa.table({user: users, item: items, **rest}), path)
        run_ranks(predicted, 1, run, [path], tmp_path / user)
        scored = pq.read_table(tmp_path / user)
        assert scored.column_names == [user, item, "scenario", "score"]
        assert scored[user].to_pylist() == users
        scores.append(scored["score"].to_pylist())
    assert scores[0] == scores[1]
