"""A run scores another dataset: ids are matched by value, files of the run stay as they are."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from renumbering import renumbered, save_values
from tiny import replace_column, tiny_dataset, tiny_store

from msrec.data.features.vocabulary import VOCABULARIES
from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.schema import load_schema, save_schema
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate, predictions_folder
from msrec.launch.evaluation.results import load_results
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.training.trainer import Trainer
from msrec.model.metrics.exact import MetricOptions

pytestmark = pytest.mark.slow


def process_of(rank, world_size):
    return Process(rank, world_size, world_size, torch.device("cpu"))


def trained(rank, world_size, config):
    if rank == 0:
        save_config(config, config.run_dir / "config.yaml")
    Trainer(config, process_of(rank, world_size)).fit()


def judged(rank, world_size, run, *args, **options):
    judging = MetricOptions(resamples=100)
    return evaluate(run, process_of(rank, world_size), *args, metric_options=judging, **options)


def judged_by(rank, world_size, run, checkpoint, data):
    return judged(rank, world_size, run, "test", checkpoint, ["user_history", "item_history"], data)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset, a store without a vector of the last user, a run, and its test results."""
    root = tmp_path_factory.mktemp("lineage")
    tiny_store(save_values(tiny_dataset(root / "old")), root / "store")
    options = [f"dataset={root / 'old'}", f"run_root={root}", f"llm.store={root / 'store'}"]
    options += ["trainer.global_batch=96", "trainer.epochs=2", "trainer.keep=2", "run_id=run"]
    options += ["embeddings.lr=0.2", "optimizer.lr=0.02", "meta.user=true", "meta.scenario=true"]
    run_ranks(trained, 1, load_config(None, options))
    run_ranks(judged_by, 1, root / "run", None, None)
    return root


def test_ids_go_by_value_whatever_their_numbers(root, tmp_path):
    """The same rows under other numbers have the same scores, metrics and histories."""
    data = renumbered(root / "old", tmp_path / "next")
    [found] = run_ranks(judged_by, 1, root / "run", None, data)
    own = load_results(root / "run")
    assert found.metrics.all.auc != 0.5
    assert found.metrics.all == own.metrics.all
    assert found.metrics.scenarios == own.metrics.scenarios
    assert found.slices == own.slices
    assert (found.dataset, found.data, own.data) == ("next day", str(data), None)


def test_histories_go_by_key(root, tmp_path):
    """Of the run's training rows, whatever split of the other data is scored."""
    config = load_config(root / "run/config.yaml", ["history.of=[user, item]", "trainer.epochs=1"])
    config = config.model_copy(update={"run_root": tmp_path})
    run_ranks(trained, 1, config)
    data = renumbered(root / "old", tmp_path / "next")
    [own] = run_ranks(judged, 1, config.run_dir)
    [found] = run_ranks(judged, 1, config.run_dir, "test", None, [], data)
    assert found.metrics == own.metrics
    keys = pa.array([f"new {at}" for at in range(40)])
    replace_column(data / "users.parquet", "user_key", keys)
    [strange] = run_ranks(judged, 1, config.run_dir, "test", None, [], data)
    assert strange.metrics.all.auc != own.metrics.all.auc


def test_two_ranks_give_the_numbers_and_intervals_of_one(root, tmp_path):
    """Scores are float32 and round otherwise in other batches; tests/test_results.py has the rest.

    There the same scores in the parts of two ranks give the same numbers to the last bit.
    """
    data = renumbered(root / "old", tmp_path / "next")
    [one] = run_ranks(judged_by, 1, root / "run", None, data)
    two = run_ranks(judged_by, 2, root / "run", None, data)[0]
    assert two.metrics.named() == pytest.approx(one.metrics.named(), abs=1e-7)
    for name, interval in one.metrics.all.intervals.items():
        assert two.metrics.all.intervals[name] == pytest.approx(interval, abs=1e-6), name


def test_predictions_of_other_data_or_checkpoints_stand_apart(root, tmp_path):
    run, data = root / "run", renumbered(root / "old", tmp_path / "next")
    before = {path: path.read_bytes() for path in (run / "predictions/test").iterdir()}
    before[run / "results.json"] = (run / "results.json").read_bytes()
    checkpoint = sorted((run / "checkpoints").iterdir())[0]
    run_ranks(judged_by, 1, run, None, data)
    run_ranks(judged_by, 1, checkpoint, None, None)
    assert {path: path.read_bytes() for path in before} == before
    of_data = load_results(predictions_folder(run, "test", data=data))
    of_checkpoint = load_results(predictions_folder(run, "test", checkpoint))
    assert of_data.checkpoint == load_results(run).checkpoint
    assert of_checkpoint.checkpoint == checkpoint.name


def test_new_values_are_row_zero_and_new_users_have_no_history(root, tmp_path):
    data = tiny_dataset(tmp_path / "new", num_users=40)
    save_values(data, user_id=[f"user_id {at + 1}" for at in range(40)])
    keys = pa.array([f"u{at + 1}" for at in range(40)])
    replace_column(data / "users.parquet", "user_key", keys)
    alignment = VocabularyAlignment(root / "old", data)
    assert (alignment.new_values, alignment.lost_values) == ({"user_id": 1}, {"user_id": 1})
    assert alignment.entities("user").tolist() == [*range(1, 40), -1]
    columns = {"scenario": np.zeros(3, int), "user_id": np.array([0, 1, 40])}
    columns |= {"item_id": np.array([5, 0, 60]), "genres": pa.array([[], [1, 6], [2]])}
    found = alignment.apply(columns, np.arange(3), epoch=0)
    assert found["user_id"].tolist() == [0, 2, 0]
    assert found["item_id"].tolist() == [5, 0, 60]
    assert found["genres"].to_pylist() == [[], [1, 6], [2]]
    [results] = run_ranks(judged_by, 1, root / "run", None, data)
    users = load_predictions(predictions_folder(root / "run", "test", data=data))
    user = pq.read_table(data / "test")["user"].to_numpy()
    new = (user == 39).sum()
    assert results.slices["user_history"]["0"].rows == new
    assert len(users.row_id) == 400


def broken(folder, **changes):
    values = load_schema(folder).model_copy(update=changes)
    save_schema(values, folder)


def without_labels(folder):
    broken(folder, labels=["rating"])


def with_another_scenario(folder):
    first, *others = load_schema(folder).scenarios
    broken(folder, scenarios=[first.model_copy(update={"name": "live"}), *others])


def without_a_feature(folder):
    first, *others = load_schema(folder).sparse
    broken(folder, sparse=others)


def with_one_genre(folder):
    *others, last = load_schema(folder).sparse
    broken(folder, sparse=[*others, last.model_copy(update={"multi": False})])


def without_vocabularies(folder):
    shutil.rmtree(folder / VOCABULARIES)


def with_numbers(folder):
    save_values(folder, user_id=list(range(40)))


def with_a_hash(folder):
    (folder / VOCABULARIES / "user_id.parquet").unlink()


def with_a_short_vocabulary(folder):
    save_values(folder, user_id=["user_id 1"])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_labels, "must have the labels of .*; it lacks label"),
        (with_another_scenario, "every scenario must be one .*search, feed, shop.*; got 'live'"),
        (without_a_feature, "must have the sparse features of .*; it lacks user_id"),
        (with_one_genre, "'genres' must hold a list of ids .*; it holds one id"),
        (without_vocabularies, "must have vocabularies.*; it has no folder vocabularies"),
        (with_numbers, "values of 'user_id' must be text.*; they are integers"),
        (with_a_hash, "ids of 'user_id' must be numbered as in"),
        (with_a_short_vocabulary, "user_id.parquet must have 40 values.*; it has 1"),
    ],
)
def test_ids_that_do_not_match_are_refused_in_one_sentence(root, tmp_path, spoil, sentence):
    data = tmp_path / "data"
    shutil.copytree(root / "old", data)
    spoil(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        VocabularyAlignment(root / "old", data)
    assert "\n" not in str(caught.value)


def test_hashed_features_match_in_tables_of_one_size(root, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        shutil.copytree(root / "old", folder)
        with_a_hash(folder)
    alignment = VocabularyAlignment(*folders)
    columns = {"user_id": np.array([0, 7]), "item_id": np.array([1, 2])}
    columns["genres"] = pa.array([[1], []])
    assert alignment.apply(columns, np.arange(2), epoch=0)["user_id"].tolist() == [0, 7]
    broken(folders[1], tables=load_schema(folders[1]).tables | {"user_id": 50})
    with pytest.raises(ValueError, match="'user_id' must have a table of 41 rows.*; it has 50"):
        VocabularyAlignment(*folders)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("llm.missing=error", "every user must have a vector .llm.missing=error.; 1 of 40 have"),
        ("llm.control=shuffled", "needs a run with llm.control=none; this one has shuffled"),
    ],
)
def test_a_run_that_cannot_score_other_data_says_why_in_one_sentence(
    root, tmp_path, option, sentence
):
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    save_config(load_config(run / "config.yaml", [option]), run / "config.yaml")
    with pytest.raises(AssertionError, match=sentence):
        run_ranks(judged_by, 1, run, None, root / "old")


def test_a_day_without_a_clock_is_refused_before_anything_is_scored(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/predictions")
    with pytest.raises(AssertionError, match="must have timestamps.*timestamp_unit"):
        run_ranks(judged, 1, tmp_path / "run", "test", None, ["day"])
    assert not (tmp_path / "run/predictions").exists()


def test_days_are_those_of_utc(root, tmp_path):
    from msrec.launch.evaluation.slices import row_groups

    data = tmp_path / "data"
    shutil.copytree(root / "old", data)
    broken(data, timestamp_unit="ms")
    start = int(np.datetime64("2024-02-28T23:00", "ms").astype(np.int64))
    for path in (data / "test").glob("*.parquet"):
        rows = pq.read_metadata(path).num_rows
        hours = start + 3_600_000 * np.arange(rows)
        replace_column(path, "timestamp", pa.array(hours, pa.int64()))
    predictions = load_predictions(root / "run/predictions/test")
    groups = row_groups(data, "test", ["day"])["day"].grouping(predictions.row_id)
    assert groups.names[:3] == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert groups.ids[:27].tolist() == [0] + [1] * 24 + [2] * 2
