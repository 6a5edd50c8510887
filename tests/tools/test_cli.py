"""The command line: one sentence for a user's mistake, help at once, a plan before training."""

import json
import logging
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from tiny import tiny_dataset, tiny_store
from torchrec.distributed.types import EmbeddingModuleShardingPlan as ModulePlan
from torchrec.distributed.types import (
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardMetadata,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.data.schema import load_schema
from msrec.launch.rank_errors import FAULT, MAY_PASS, MISTAKE, NO_RESTART
from msrec.launch.reporting.plan_table import plan_table
from msrec.launch.training.repeated_failure import RepeatedFailure
from msrec.tools.cli.main import main

pytestmark = pytest.mark.slow

CONFIG = """
dataset: {root}/tiny
run_root: {root}/runs
llm: {{ store: {root}/store }}
embeddings: {{ dim: 8 }}
trainer: {{ global_batch: 96, epochs: 1 }}
"""
COMMANDS = [
    [],
    *(["train"], ["evaluate"], ["encode"], ["report"], ["show"], ["synthetic"], ["demo"]),
    *(
        ["doctor"],
        ["zoo"],
        ["bench"],
        ["bench", "zoo"],
        ["bench", "table"],
        ["bench", "encode"],
        ["bench", "store"],
        ["bench", "serve"],
        *(["export"], ["apply"], ["score"], ["serve"]),
        ["experiment"],
        ["explain"],
        ["convert"],
        ["convert", "movielens"],
        ["convert", "tables"],
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset, its store, a config, and a run that never saved anything."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    (folder / "conf.yaml").write_text(CONFIG.format(root=folder))
    (folder / "begun").mkdir()
    (folder / "begun/config.yaml").write_text(CONFIG.format(root=folder))
    return folder


@pytest.fixture
def msrec(root, monkeypatch, capsys):
    """Run a command in this process, in the folder above -> (exit status, stdout, stderr)."""
    monkeypatch.chdir(root)
    monkeypatch.delenv("RANK", raising=False)
    handlers = logging.getLogger().handlers[:]

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["msrec", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    yield run
    logging.getLogger().handlers[:] = handlers


MISTAKES = {
    "unknown key": (
        ["trainer.epoch=3"],
        "error: the override trainer.epoch=3: trainer.epoch is not a known key; near",
    ),
    "section": (
        ["llm.sources=[a, a]", "seed=1"],
        "error: conf.yaml with llm.sources=[a, a]: llm: sources must differ; got a, a",
    ),
    "whole config": (["trainer.progressive=1"], "error: conf.yaml: trainer.progressive must be 0"),
    "no key": (["nonsense"], "an override must look like key.sub=value; got 'nonsense'"),
    "value for keys": (["trainer=5"], "trainer must hold keys, such as trainer."),
    "out of range": (
        ["trainer.epochs=0"],
        "the override trainer.epochs=0: trainer.epochs: Input",
    ),
    "unknown backbone": (["backbone.name=mmo"], "got 'mmo', near it are mmoe, m2m."),
    "no dataset": (["dataset=nowhere"], "nowhere/dataset.yaml must exist"),
    "no store": (["meta.user=true", "llm.store=nowhere"], "run `msrec encode` first"),
    "no store given": (["meta.user=true", "llm.store=null"], "need llm.store=FOLDER"),
    "other prompt": (["meta.user=true", "llm.template=movielens"], "template 'default' (expected"),
    "other model": (["meta.scenario=true", "llm.model=other"], "model 'smollm2-135m-instruct' (ex"),
    "no plan": (["plan=nowhere.json"], "plan=nowhere.json must name a file; there is none"),
    "unknown table": (
        ["embeddings.sharding={usr: row_wise}"],
        "names table 'usr'; the tables are user_id, item_id, genre",
    ),
}


@pytest.mark.parametrize(("overrides", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_before_training_is_one_sentence(msrec, overrides, sentence):
    assert_one_sentence(msrec("train", "conf.yaml", *overrides), sentence)


OTHERS = {
    "no config": (["train", "none.yaml"], "the config file none.yaml must exist"),
    "no config and no run": (["train", "seed=1"], "msrec train must have a CONFIG file; or --data"),
    "no run to go on from": (
        ["train", "init_from=tiny", "--data", "tiny"],
        "tiny must be a run folder; it has no config.yaml",
    ),
    "no export": (["apply", "tiny", "tiny", "--out", "new"], "tiny holds no export. Make one by"),
    "no link": (
        ["apply", "tiny", "tiny", "--out", "new", "--swap"],
        "tiny must be a link to an export",
    ),
    "no run": (["evaluate", "tiny"], "tiny must be a run folder; it has no config.yaml"),
    "no checkpoint": (["evaluate", "begun"], "begun/checkpoints must hold a committed checkpoint"),
    "no such split": (["evaluate", "begun", "split=all"], "split must be train, valid or test"),
    "no such option": (["evaluate", "begun", "spilt=test"], "'spilt=test' is not known here"),
    "no such slice": (["evaluate", "begun", "--by", "week"], "by must name some of scenario, day"),
    "not evaluated": (["compare", "begun", "begun"], "begun/predictions/test/_COMMIT must exist"),
    "no such metric": (
        ["compare", "begun", "begun", "--metric", "f1"],
        "metric must be one of auc",
    ),
    "no results": (["report", "tiny"], "tiny must be a run folder; it has none of"),
    "no store": (["encode", "conf.yaml", "llm.store=null"], "llm.store must name a folder"),
    "no such level": (["encode", "conf.yaml", "--show", "film=1"], "--show must be user=KEY"),
    "no such user": (["encode", "conf.yaml", "--show", "user=9"], "must hold the user '9'"),
    "nothing to show": (["show", "runs"], "runs must be a dataset (dataset.yaml), a store"),
    "no tables": (["convert", "tables", "store", "out"], "store/interactions.parquet must exist"),
    "no movielens": (["convert", "movielens", "store", "out"], "store/ratings.dat must exist"),
    "fractions": (
        ["convert", "tables", "tiny", "out", "--fractions", "0.9", "0.2", "0.1"],
        "split fractions must be 3 numbers",
    ),
}


@pytest.mark.parametrize(("command", "sentence"), OTHERS.values(), ids=OTHERS)
def test_a_mistake_in_another_command_is_one_sentence(msrec, command, sentence):
    assert_one_sentence(msrec(*command), sentence)


def assert_one_sentence(outcome, sentence):
    status, _, told = outcome
    assert status == 2
    assert sentence in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "Traceback" not in told


def at_a_step(error):
    setattr(error, MAY_PASS, True)
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError("conf.yaml must exist; it does not."), MISTAKE),
        (ValueError("a fault, with the stack of a worker"), FAULT),
        (ConnectionError("the store must be reachable; it is not."), FAULT),
        (RepeatedFailure("the run must get past step 3"), NO_RESTART),
        (at_a_step(FileNotFoundError("train/part-00000.parquet must exist")), FAULT),
    ],
)
def test_a_rank_says_by_its_status_whether_a_restart_may_help(msrec, monkeypatch, error, status):
    def load_config(*args):
        raise error

    if "stack" in str(error):
        error.add_note("In a worker: ...")
    monkeypatch.setenv("RANK", "1")
    assert msrec("train", "conf.yaml", "trainer.epochs=0")[0] == MISTAKE
    assert msrec("train", "conf.yaml", "--epochs", "0")[0] == MISTAKE
    monkeypatch.setattr("msrec.launch.daily.next_day.load_config", load_config)
    assert msrec("train", "conf.yaml")[0] == status


def test_a_value_error_from_inside_a_library_shows_its_stack(msrec, monkeypatch):
    def load_config(*args):
        return [].index("a fault of ours")

    monkeypatch.setattr("msrec.launch.daily.next_day.load_config", load_config)
    status, _, told = msrec("train", "conf.yaml")
    assert status == 2
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("error: 'a fault of ours' is not in list")


def test_a_dry_run_prints_the_plan_and_writes_nothing(msrec, root):
    options = ["embeddings.sharding={user_id: row_wise}", "meta.user=true"]
    status, told, _ = msrec("train", "conf.yaml", "--dry-run", *options)
    assert status == 0
    rows = {line.split("│")[1].strip(): line for line in told.splitlines() if line.startswith("│")}
    assert "row_wise" in rows["user_id"]
    assert "table_wise" in rows["item_id"]
    assert "2,000 training rows, 21 steps of 96 rows an epoch" in told
    assert not (root / "runs").exists()


def test_train_evaluate_prints_and_saves_what_evaluate_would(msrec, tmp_path):
    status, told, _ = msrec("train", "conf.yaml", "--evaluate", f"run_root={tmp_path}", "run_id=a")
    results = tmp_path / "a/results.json"
    first = results.read_text()
    results.unlink()
    _, tables, _ = msrec("evaluate", str(tmp_path / "a"))
    assert status == 0
    assert tables in told
    assert results.read_text() == first


def test_tables_that_do_not_fit_are_one_sentence(msrec, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2000))
    outcome = msrec("train", "conf.yaml", "--dry-run")
    assert_one_sentence(outcome, "must fit on 1 ranks; TorchRec's planner says: Unable to find")


def test_the_plan_table_adds_up_shards_by_rank():
    """1 MiB by rows on 2 ranks, 3 MiB on rank 1, 2 MiB on every rank."""
    sizes = {"cut": 1 << 18, "whole": 3 << 18, "copied": 2 << 18}
    half = sizes["cut"] // 2
    pieces = {
        "cut": [([0, 0], half, 0), ([half, 0], half, 1)],
        "whole": [([0, 0], sizes["whole"], 1)],
    }
    plan = {"cut": shards("row_wise", [0, 1], pieces["cut"])}
    plan["whole"] = shards("table_wise", [1], pieces["whole"])
    plan["copied"] = ParameterSharding("data_parallel", "dense", [0, 1])
    tables = [
        EmbeddingBagConfig(name=n, embedding_dim=1, num_embeddings=r, feature_names=[n])
        for n, r in sizes.items()
    ]
    model = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    table = plan_table(ShardingPlan({"ebc": ModulePlan(plan)}), model, 2)
    size, per_rank = (list(table.columns[place].cells) for place in (5, 6))
    assert size[:4] == ["1.0 MiB", "3.0 MiB", "4.0 MiB", "8.0 MiB"]
    assert per_rank[:4] == ["512.0 KiB", "3.0 MiB", "2.0 MiB", "5.5 MiB"]


def shards(kind, ranks, pieces):
    metadata = [
        ShardMetadata(shard_offsets=start, shard_sizes=[rows, 1], placement=f"rank:{rank}/cpu")
        for start, rows, rank in pieces
    ]
    return ParameterSharding(kind, "fused", ranks, EnumerableShardingSpec(metadata))


def test_show_tells_what_each_kind_of_folder_holds(msrec, root, tmp_path):
    assert "genre" in msrec("show", "tiny")[1]
    told = msrec("show", "store")[1]
    assert "store/user: 39 vectors" in told
    assert "store/scenario: 3 vectors" in told
    run = tmp_path / "run"
    (run / "checkpoints/step-00000020").mkdir(parents=True)
    (run / "checkpoints/step-00000020/COMMIT").touch()
    (run / "config.yaml").touch()
    lines = [
        {"step": step, "split": "valid", "metrics": {"auc/all": auc}}
        for step, auc in ((20, 0.7), (10, 0.6))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = msrec("show", run)[1]
    assert "newest checkpoint step-00000020" in told
    assert told.index("0.6000") < told.index("0.7000")


def test_convert_takes_a_given_split_fractions_and_last_rows(msrec, tmp_path):
    write_tables(tmp_path / "raw")
    given = ["--split", "given", "--split-column", "part"]
    assert split_of(msrec, tmp_path, *given) == [40, 12, 8]
    assert split_of(msrec, tmp_path, "--fractions", "0.5", "0.3", "0.2") == [30, 18, 12]
    assert split_of(msrec, tmp_path, "--split", "user_last", "--last", "2") == [36, 12, 12]


def split_of(msrec, folder, *options):
    status, _, told = msrec(
        "convert", "tables", folder / "raw", folder / "out", "--overwrite", *options
    )
    assert status == 0, told
    rows = load_schema(folder / "out").counts["rows"]
    return [rows[split]["all"] for split in ("train", "valid", "test")]


def write_tables(folder, rows=60):
    folder.mkdir()
    numbers = range(rows)
    interactions = {
        "user_id": [f"u{n % 6}" for n in numbers],
        "item_id": [f"i{n % 5}" for n in numbers],
        "timestamp": list(numbers),
        "scenario": ["feed" if n % 2 else "search" for n in numbers],
        "label": [float(n % 3 == 0) for n in numbers],
        "part": ["train"] * 40 + ["valid"] * 12 + ["test"] * 8,
    }
    pl.DataFrame(interactions).write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": [f"i{n}" for n in range(5)]}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_id": [f"u{n}" for n in range(6)]}).write_parquet(folder / "users.parquet")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words) or "msrec")
def test_every_command_has_help(msrec, command):
    status, told, _ = msrec(*command, "--help")
    assert status == 0
    assert "Usage: msrec" in told


def test_help_needs_neither_torch_nor_polars():
    heavy = "{'torch', 'polars', 'pyarrow', 'transformers'}"
    code = f"import sys, msrec.tools.cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_within_half_a_second():
    """CPU time, so that a busy machine does not fail it."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "msrec", "--help"], capture_output=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    assert min(spent, time.perf_counter() - started) < 0.5
