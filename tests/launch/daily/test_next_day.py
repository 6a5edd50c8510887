"""Start of a day from the day before: config, optimizer state, refusals, kill and restart."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from days import contents, convert_days, day_config, raw_day, train_day
from ranks import run_ranks
from trainings import weights

from msrec.data.convert.conversion import write_dataset
from msrec.data.schema import load_schema
from msrec.launch.checkpointing.dcp_storage import read_tensors
from msrec.launch.config.run_config import check_run_folder, load_config
from msrec.launch.daily.next_day import training_config
from msrec.launch.distributed import Process, process_group
from msrec.launch.trained_run import find_run
from msrec.launch.training.preemption import Preempted
from msrec.launch.training.trainer import Trainer, train_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Datasets of two days and the run of the first."""
    folder = tmp_path_factory.mktemp("days")
    convert_days(folder, 2)
    train_day(folder, 1, "optimizer.weight_decay=0.01")
    return folder


def saved(root, prefix):
    """Tensors of the checkpoint that day 2 starts from."""
    (best,) = (root / "runs/day1/checkpoints").glob(f"*-{best_step(root):08d}")
    return read_tensors(best, prefix)


def best_step(root):
    (newest,) = sorted((root / "runs/day1/checkpoints").glob("step-*"))[-1:]
    return json.loads((newest / "COMMIT").read_text())["state"]["best_step"]


def shards(tensor):
    """(first row, first column) -> values of the shards of this rank."""
    if not hasattr(tensor, "local_shards"):
        return {(0, 0): tensor.detach().numpy().copy()}
    local = tensor.local_shards()
    return {tuple(s.metadata.shard_offsets): s.tensor.detach().numpy().copy() for s in local}


def begun(rank, world_size, config):
    """Weights and optimizer state before the first step."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    trainer.resume()
    state = trainer.optimizer.state_dict()["state"]
    of_state = {f"optim.{k}.{n}": shards(t) for k, own in state.items() for n, t in own.items()}
    return of_state, weights(trainer)


def fresh(root, *options):
    """Config of day 2 without the day before."""
    config = day_config(root, 2, "trainer.progressive=0", *options)
    return config.model_copy(update={"init_from": None, "run_id": "fresh"})


@pytest.mark.parametrize(
    ("ranks", "sharding"),
    [(1, "table_wise"), (2, "table_wise"), (2, "row_wise"), (2, "column_wise")],
)
def test_optimizer_state_is_kept_and_new_rows_start_at_zero(root, tmp_path, ranks, sharding):
    tables = f"embeddings.sharding={{user_id: {sharding}, item_id: {sharding}}}"
    config = day_config(root, 2, f"run_root={tmp_path}", tables, "embeddings.min_columns=4")
    found = {}
    for of_state, _ in run_ranks(begun, ranks, config):
        for name, parts in of_state.items():
            found.setdefault(name, {}).update(parts)
    before = saved(root, "optim.")
    assert found.keys() == before.keys()
    grown = 0
    num_rows = load_schema(root / "day2").tables
    for name, expected in before.items():
        assert expected.any()
        parts = [np.atleast_1d(found[name][first]) for first in sorted(found[name])]
        now, expected = np.concatenate(parts), np.atleast_1d(expected)
        rows, table = len(expected), name.split(".")[-2]
        is_by_row = name.endswith("momentum1") and table in num_rows
        # Each column shard has an accumulator per row, here the one of the whole row.
        for own in np.split(now, len(now) // num_rows[table]) if is_by_row else [now]:
            np.testing.assert_array_equal(own[:rows], expected, name)
            assert not own[rows:].any()
            grown += len(own) > rows
        if is_by_row and table != "age":
            assert len(now) == num_rows[table] * (2 if sharding == "column_wise" else 1)
    assert grown == (4 if sharding == "column_wise" else 2)
    steps = [float(value) for name, value in before.items() if name.endswith(".step")]
    assert set(steps) == {float(best_step(root))}
    actions = json.loads((tmp_path / "day2/init_from.json").read_text())["tensors"]
    of_state = [a["action"] for a in actions if a["name"].startswith("optim.")]
    assert sorted(set(of_state)) == ["grown", "taken"]
    assert of_state.count("grown") == 2


def test_a_parameter_that_does_not_fit_starts_with_weights_and_state_of_a_new_run(root, tmp_path):
    options = ["backbone.tower_dims=[4]", "strict=false", "optimizer.weight_decay=0.5"]
    config = day_config(root, 2, f"run_root={tmp_path}", *options)
    state, found = run_ranks(begun, 1, config)[0]
    _, new = run_ranks(begun, 1, fresh(root, f"run_root={tmp_path}", *options))[0]
    trained = saved(root, "model.")
    left = [n for n, v in found.items() if v.shape != tuple(trained[f"model.{n}"].shape)]
    tower = [name for name in left if ".towers." in name]
    assert len(tower) == 3
    for name in tower:
        np.testing.assert_array_equal(found[name], new[name])
        own = [parts for key, parts in state.items() if name in key]
        assert len(own) == 3
        assert not any(part[0, 0].any() for part in own)
    name = "ranker.over.backbone.bottom.0.weight"
    np.testing.assert_array_equal(found[name], trained[f"model.{name}"])


def refusal(root, *overrides):
    with pytest.raises((ValueError, FileNotFoundError)) as caught, process_group("cpu") as process:
        train_run(day_config(root, 2, *overrides), process)
    return str(caught.value)


def test_a_dataset_that_moved_table_rows_is_refused(root, tmp_path):
    write_dataset(raw_day(2), tmp_path / "alone")
    options = [f"run_root={tmp_path}/runs", f"dataset={tmp_path}/alone"]
    config = training_config(None, [f"init_from={root}/runs/day1", *options])
    message = f"user_id.parquet must begin .* Convert {tmp_path}/alone with --grow-from {root}/day1"
    with pytest.raises(ValueError, match=message), process_group("cpu") as process:
        train_run(config, process)


def test_other_tensors_and_moved_rows_of_scenario_tables_are_refused(root, tmp_path):
    message = refusal(root, f"run_root={tmp_path}", "backbone.tower_dims=[4]")
    assert "in the same shapes, but for tables that grew; 12 differ: left " in message
    options = [f"run_root={tmp_path}", "embeddings.per_scenario=true", "strict=false"]
    assert "tables can grow with scale=1 and" in refusal(root, *options)


def test_the_config_is_that_of_the_run_before_with_the_options_of_a_next_day(root):
    config = training_config(None, [f"init_from={root}/runs/day1"], f"{root}/day2")
    assert (config.run_dir, config.dataset) == (root / "runs/day2", root / "day2")
    assert config.backbone == day_config(root, 1).backbone
    assert (config.init_optimizer, config.strict, config.trainer.progressive) == (True, "grown", 1)
    options = [f"init_from={root}/runs/day1", "run_id=other", "trainer.progressive=0.5"]
    other = training_config(None, options, f"{root}/day2")
    assert (other.run_id, other.trainer.progressive) == ("other", 0.5)


@pytest.mark.parametrize(
    ("overrides", "data", "message"),
    [
        ([], "day2", "msrec train must have a CONFIG file; or --data DATASET init_from=RUN"),
        (["init_from=day1"], None, "must have a CONFIG file; or --data"),
        (["init_from=day1"], "day2", "day1 must be a run folder"),
        (["init_from=day1", "dataset=x"], "day2", "--data=day2 and dataset=x must not both"),
    ],
)
def test_a_training_without_a_config_names_what_is_missing(overrides, data, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        training_config(None, overrides, data)


def test_the_run_before_is_never_continued(root, tmp_path):
    config = day_config(root, 2, "run_id=day1")
    with pytest.raises(ValueError, match="must be another run than the one to train"):
        check_run_folder(config)
    with pytest.raises(ValueError, match=r"trainer.progressive must be 0 without init_from"):
        load_config(None, [f"dataset={root}/day1", "trainer.progressive=1"])
    before = contents(root / "runs/day1")
    train_day(root, 2, f"run_root={tmp_path}")
    assert contents(root / "runs/day1") == before
    assert find_run(tmp_path / "day2").folder == tmp_path / "day2"


class Killed(Exception):
    pass


def ended(trainer, function, error):
    """Trains until the function is called, which raises the error."""

    def end(*_, **__):
        raise error

    owner = trainer._validation if function == "streaming" else trainer
    setattr(owner, function, end)
    if error is Preempted:
        assert trainer.fit().preempted
    else:
        with pytest.raises(error):
            trainer.fit()


def lines(run_dir):
    text = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in text]
    return [(each["split"], each["step"], each["metrics"].get("auc/all")) for each in records]


@pytest.mark.parametrize(
    ("function", "error"),
    [("streaming", Killed), ("streaming", Preempted), ("_train_until_validation", Killed)],
    ids=["killed in it", "SIGTERM in it", "killed after it"],
)
def test_a_stopped_run_has_its_progressive_validation_once(root, tmp_path, function, error):
    share = ["trainer.progressive=0.3", "trainer.eval_batch=100"]
    whole = day_config(root, 2, f"run_root={tmp_path}/whole", *share)
    config = day_config(root, 2, f"run_root={tmp_path}/stopped", *share)
    with process_group("cpu") as process:
        undisturbed = Trainer(whole, process)
        undisturbed.fit()
        ended(Trainer(config, process), function, error)
        trainer = Trainer(config, process)
        trainer.fit()
    found = lines(config.run_dir)
    assert [split for split, _, _ in found].count("progressive") == 1
    assert found == lines(whole.run_dir)
    first = json.loads((config.run_dir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["metrics"]["rows/all"] == 300  # of 7 batches, 0.3 rounded up
    for name, value in weights(undisturbed).items():
        np.testing.assert_array_equal(weights(trainer)[name], value, name)


def first_line(rank, world_size, config):
    Trainer(config, Process(rank, world_size, world_size, torch.device("cpu"))).fit()
    return json.loads((config.run_dir / "metrics.jsonl").read_text().splitlines()[0])["metrics"]


def test_progressive_validation_on_two_ranks_equals_one(root, tmp_path):
    one, two = (
        run_ranks(first_line, ranks, day_config(root, 2, f"run_root={tmp_path}/{ranks}", *options))
        for ranks, options in ((1, ["trainer.max_steps=1"]), (2, ["trainer.max_steps=1"]))
    )
    assert one[0] == pytest.approx(two[0], abs=1e-6)


def test_progressive_validation_does_not_change_the_training(root, tmp_path):
    with process_group("cpu") as process:
        losses = [
            Trainer(day_config(root, 2, f"run_root={tmp_path}/{n}", option), process).fit().losses
            for n, option in enumerate(["trainer.progressive=0", "trainer.progressive=1"])
        ]
    assert losses[0] == losses[1]
    rows = pl.read_parquet(root / "day2/train").height
    shown = [record for record in lines(tmp_path / "1/day2") if record[0] == "progressive"]
    assert len(shown) == 1
    first = json.loads((tmp_path / "1/day2/metrics.jsonl").read_text().splitlines()[0])
    assert first["metrics"]["rows/all"] == rows
