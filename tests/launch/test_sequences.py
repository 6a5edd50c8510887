"""Runs with `sequence.protocol`: loaders, other datasets, plain files, results and commands."""

import io
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from history_rows import histories, rows_of, slow_history, with_ties
from ranks import run_ranks
from renumbering import renumbered, save_values
from rich.console import Console
from tiny import tiny_dataset
from trainings import config_of

from msrec.data.features.vocabulary_alignment import VocabularyAlignment
from msrec.data.histories.build import build_histories
from msrec.data.loading.batch import no_events
from msrec.data.schema import SPLITS, load_schema
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import load_results
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import ScoredDataset, build_file_loader, build_loader
from msrec.launch.reporting.setup_section import setup_section
from msrec.launch.training.trainer import Trainer
from msrec.tools.cli.main import main
from msrec.tools.convert import convert
from msrec.tools.show import show

ONE = Process(0, 1, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = save_values(with_ties(tmp_path_factory.mktemp("sequences") / "tiny"))
    build_histories(folder)
    return folder


def inputs_of(config, scored=None):
    return KnowledgeInputs(config, load_schema(config.dataset), scored)


def sequence_config(dataset, root, *overrides, protocol="stream"):
    return config_of(
        dataset, root, f"sequence.protocol={protocol}", "sequence.max_len=6", *overrides
    )


@pytest.mark.parametrize("protocol", ["stream", "frozen"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_loader_of_a_run_has_the_histories(dataset, tmp_path, protocol, split):
    config = sequence_config(dataset, tmp_path, protocol=protocol)
    loader = build_loader(config, split, ONE, inputs_of(config), 96, shuffle=split == "train")
    names = SPLITS if protocol == "stream" else ("train",)
    events = [row for name in names for row in rows_of(dataset, name)]
    rows = rows_of(dataset, split)
    found = histories(next(loader.batches()))
    assert len(found) == 96
    assert all(history == slow_history(rows[n], events, 6) for n, history in found.items())


def test_a_run_without_a_protocol_reads_no_histories(dataset, tmp_path):
    config = config_of(dataset, tmp_path)
    loader = build_loader(config, "train", ONE, inputs_of(config), 96, shuffle=True)
    assert next(loader.batches()).sequence is no_events()


def test_a_dataset_without_the_index_names_the_command(tmp_path):
    dataset = tiny_dataset(tmp_path / "tiny", rows=300, valid_rows=60)
    config = sequence_config(dataset, tmp_path)
    with pytest.raises(FileNotFoundError, match="Run `msrec histories .*tiny --protocol stream`"):
        inputs_of(config)


def test_another_dataset_has_its_own_histories_with_scenarios_of_the_run(dataset, tmp_path):
    """Items stay indices into the items.parquet of the scored dataset."""
    other = renumbered(dataset, tmp_path / "other")
    build_histories(other)
    config = sequence_config(dataset, tmp_path)
    alignment = VocabularyAlignment(dataset, other)
    scored = ScoredDataset(other, alignment)
    inputs = inputs_of(config, other)
    loader = build_loader(config, "test", ONE, inputs, 400, shuffle=False, scored=scored)
    own = build_loader(config, "test", ONE, inputs_of(config), 400, shuffle=False)
    before, after = (next(each.batches()) for each in (own, loader))
    keys = [
        pq.read_table(folder / "items.parquet")["item_key"].to_pylist()
        for folder in (dataset, other)
    ]
    for row, history in histories(before).items():
        renamed = [(keys[0].index(keys[1][item]), *rest) for item, *rest in histories(after)[row]]
        assert renamed == history


# Plain files -------------------------------------------------------------------------------------


def file_batch(config, paths, scored, raw=False):
    inputs = inputs_of(config)
    scored = ScoredDataset(scored, None)
    return next(build_file_loader(config, ONE, inputs, 96, paths, raw=raw, scored=scored).batches())


@pytest.mark.parametrize("protocol", ["stream", "frozen"])
@pytest.mark.parametrize("has_time", [True, False])
def test_rows_of_files_have_the_history_of_their_user(dataset, tmp_path, protocol, has_time):
    table = pq.read_table(sorted((dataset / "test").glob("*.parquet"))[0]).slice(0, 96)
    table = table if has_time else table.drop_columns(["timestamp"])
    pq.write_table(table.drop_columns(["label"]), tmp_path / "new.parquet")
    config = sequence_config(dataset, tmp_path, protocol=protocol)
    batch = file_batch(config, [tmp_path / "new.parquet"], dataset)
    names = SPLITS if protocol == "stream" else ("train",)
    events = [row for name in names for row in rows_of(dataset, name)]
    for number, row in enumerate(table.to_pylist()):
        row.setdefault("timestamp", 10**9)
        assert histories(batch)[number] == slow_history(row, events, 6)
    expected = table["timestamp"].to_pylist() if has_time else [0] * 96
    assert batch.sequence.time_of_row.tolist() == expected


@pytest.fixture
def raw_file(tmp_path):
    """Raw rows, the last one of a new user and a new item."""
    raw = {
        "user_key": ["u3", "u3", "new"],
        "item_key": ["i1", "i2", "new"],
        "scenario": ["feed"] * 3,
        "genres": [["g1"]] * 3,
        "price": [0.0] * 3,
        "timestamp": [20, 5, 20],
    }
    pq.write_table(pa.table(raw), tmp_path / "raw.parquet")
    return tmp_path / "raw.parquet"


def test_raw_rows_have_histories_and_unknown_users_have_none(dataset, raw_file, tmp_path):
    config = sequence_config(dataset, tmp_path)
    events = [row for name in SPLITS for row in rows_of(dataset, name)]
    batch = file_batch(config, [raw_file], dataset, raw=True)
    for number, time in enumerate((20, 5)):
        row = {"user": 3, "timestamp": time}
        assert histories(batch)[number] == slow_history(row, events, 6)
    assert histories(batch)[2] == []
    items = [*batch.sequence.items.values().tolist(), -1]  # the empty bag is last
    candidates = [items[place] for place in batch.sequence.candidate.tolist()]
    of_row = dict(
        zip(batch.row_id.tolist(), zip(batch.item.tolist(), candidates, strict=True), strict=True)
    )
    assert [of_row[number] for number in range(3)] == [(1, 1), (2, 2), (-1, -1)]
    table = pq.read_table(raw_file)
    pq.write_table(table.drop_columns(["timestamp"]), raw_file)
    batch = file_batch(config, [raw_file], dataset, raw=True)
    assert histories(batch)[0] == slow_history({"user": 3, "timestamp": 10**9}, events, 6)


def test_a_raw_timestamp_must_be_an_integer(dataset, raw_file, tmp_path):
    config = sequence_config(dataset, tmp_path)
    table = pq.read_table(raw_file)
    times = pa.array([20, None, 20])
    pq.write_table(table.drop_columns(["timestamp"]).append_column("timestamp", times), raw_file)
    with pytest.raises(ValueError, match="column 'timestamp', row 1: nothing may be null"):
        file_batch(config, [raw_file], dataset, raw=True)
    # A run without sequences reads no timestamp.
    assert file_batch(config_of(dataset, tmp_path), [raw_file], dataset, raw=True) is not None


# Results and commands ----------------------------------------------------------------------------


def trained(rank, world_size, config):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    Trainer(config, process).fit()
    save_config(config, config.run_dir / "config.yaml")
    evaluate(config.run_dir, process)


@pytest.mark.slow
def test_results_and_the_report_name_the_protocol(dataset, tmp_path):
    config = sequence_config(dataset, tmp_path, "trainer.max_steps=3", protocol="frozen")
    run_ranks(trained, 2, config)
    history = load_results(config.run_dir).history
    assert history.model_dump() == {"protocol": "frozen", "events": "all", "max_len": 6}
    section = repr(setup_section({"run": config.run_dir}))
    assert "the 6 newest of all earlier rows of the user, protocol frozen" in section


@pytest.mark.slow
def test_results_without_histories_have_none(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.max_steps=3")
    run_ranks(trained, 1, config)
    assert load_results(config.run_dir).history is None


def test_the_command_builds_and_show_prints_the_histories(tmp_path, monkeypatch, capsys):
    dataset = with_ties(tmp_path / "tiny", rows=300, valid_rows=60)

    def msrec(*args):
        monkeypatch.setattr(sys, "argv", ["msrec", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    status, out, _ = msrec("histories", dataset, "--protocol", "frozen", "--events", "positive")
    assert status == 0
    assert "without history" in out
    assert list(load_schema(dataset).histories) == ["frozen"]
    assert load_config(None, [f"dataset={dataset}", "sequence.protocol=frozen"])
    console = Console(file=io.StringIO(), width=120)
    show(dataset, console=console)
    assert "(positive rows), ordered by timestamp" in console.file.getvalue()
    status, _, error = msrec("histories", dataset, "--protocol", "live")
    assert status == 2
    assert "--protocol must be stream or frozen; got 'live'" in error


def test_convert_can_add_histories(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = {"user_id": rng.integers(20, size=400), "item_id": rng.integers(30, size=400)}
    rows |= {"scenario": rng.integers(2, size=400), "label": rng.integers(2, size=400)}
    pl.DataFrame(rows | {"timestamp": rng.integers(99, size=400)}).write_parquet(
        raw / "interactions.parquet"
    )
    pl.DataFrame({"user_id": range(20)}).write_parquet(raw / "users.parquet")
    pl.DataFrame({"item_id": range(30)}).write_parquet(raw / "items.parquet")
    console = Console(quiet=True)
    schema = convert("tables", raw, tmp_path / "app", histories=True, console=console)
    assert sorted(schema.histories) == ["frozen", "stream"]

    def failing(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("msrec.tools.convert.build_histories", failing)
        with pytest.raises(OSError, match="No space"):
            convert("tables", raw, tmp_path / "half", histories=True, console=console)
    assert not (tmp_path / "half").exists()
    pl.DataFrame(rows).write_parquet(raw / "interactions.parquet")
    with pytest.raises(ValueError, match="must have timestamps for --histories"):
        convert("tables", raw, tmp_path / "untimed", histories=True, console=console)
    assert not (tmp_path / "untimed").exists()
