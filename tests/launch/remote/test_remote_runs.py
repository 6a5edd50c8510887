"""Runs, stores and exports in an object store are used like local ones."""

import filecmp
import os
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from object_store import store
from ranks import run_ranks
from raw_rows import joined, raw_tables
from tiny import tiny_store
from trainings import BOTH, fit

import msrec
from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.io.paths import to_path
from msrec.launch.calibration.calibration_file import CALIBRATION_FILE
from msrec.launch.checkpointing.remote_runs import MARKS, changed_run, local_run
from msrec.launch.config.run_config import check_run_folder, load_config, save_config
from msrec.launch.daily.next_day import training_config
from msrec.launch.evaluation.results import RESULTS_FILE
from msrec.launch.evaluation.scored_rows.commit import COMMIT_FILE

pytestmark = pytest.mark.slow
MSREC = [sys.executable, "-m", "msrec"]
RUN = "s3://apps/runs/first"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Folder of a dataset, its store and two runs, of which one is evaluated and exported."""
    root = tmp_path_factory.mktemp("app")
    split = SplitChoice("time", fractions=(0.7, 0.1, 0.2))
    raw = raw_tables(rows=2000)
    write_dataset(raw, root / "data", split)
    tiny_store(root / "data", root / "store")
    config = load_config(
        None,
        [
            *(f"dataset={root}/data", f"run_root={root}/runs", "run_id=first", *BOTH),
            *(f"llm.store={root}/store", "trainer.global_batch=96", "trainer.epochs=2"),
            *("embeddings.dim=8", "trainer.checkpoint_every_steps=5", "meta.rank=3"),
        ],
    )
    run_ranks(fit, 1, config)
    save_config(config, config.run_dir / "config.yaml")
    joined(raw).tail(300).write_parquet(root / "rows.parquet")
    return root


@pytest.fixture(scope="module")
def server():
    with store() as bucket:
        yield bucket


@pytest.fixture
def bucket(app, server, tmp_path, monkeypatch):
    """Store that has the knowledge store and the run, which names the store by its URL."""
    monkeypatch.setenv("MSREC_CACHE", str(tmp_path / "cache"))
    run = shutil.copytree(app / "runs/first", tmp_path / "first")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"{app}/store", "s3://apps/store"))
    for prefix in ("runs/first", "store", "scores", "exports/one"):
        for name in server.names(prefix):
            server.delete(f"{prefix}/{name}")
    server.upload(app / "store", "store")
    server.upload(run, "runs/first")
    return server


def command(*words):
    words = [*MSREC, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_the_marks_are_the_files_that_are_written_last():
    assert MARKS == (COMMIT_FILE, RESULTS_FILE, CALIBRATION_FILE)


def test_a_run_is_copied_with_one_checkpoint_and_only_if_its_weights_are_read(bucket):
    steps = {name.split("/")[1] for name in bucket.names("runs/first") if "/COMMIT" in name}
    assert len(steps) > 1
    small = local_run(to_path(RUN), weights=False)
    assert small.name == "first"
    assert {p.name for p in small.glob("checkpoints/*/*")} == {"COMMIT"}
    whole = local_run(to_path(RUN))
    with_tensors = {p.parent.name for p in whole.glob("checkpoints/*/__*")}
    assert len(with_tensors) == 1
    other = min(steps - with_tensors)
    named = local_run(to_path(f"{RUN}/checkpoints/{other}"))
    assert (named.name, named.parent.parent.name) == (other, "first")
    assert {p.parent.name for p in named.parent.glob("*/__*")} == {other}


def test_a_checkpoint_without_its_marker_is_not_copied(bucket):
    newest = max(n.split("/")[1] for n in bucket.names("runs/first") if "/COMMIT" in n)
    bucket.delete(f"runs/first/checkpoints/{newest}/COMMIT")
    assert newest not in {p.name for p in local_run(to_path(RUN)).glob("checkpoints/*")}


def test_an_evaluation_is_that_of_the_local_run_and_is_sent(app, bucket, tmp_path):
    here = shutil.copytree(app / "runs/first", tmp_path / "here/first")
    expected = msrec.evaluate(here, device="cpu")
    code, out, err = command("evaluate", RUN)
    assert code == 0, err
    assert "copying s3://apps/runs/first to" in err
    there = bucket.download("runs/first", tmp_path / "there")
    (part,) = (here / "predictions/test").glob("part-*")
    assert filecmp.cmp(there / "predictions/test" / part.name, part, shallow=False)
    assert msrec.open_run(RUN).results() == expected
    assert expected.metrics.all.auc > 0.5
    before = sorted(bucket.names("runs/first"))
    code, out, err = command("evaluate", RUN)  # replaces its own results, and nothing else
    assert code == 0, err
    assert [n for n in before if "tensorboard" not in n] == [
        n for n in sorted(bucket.names("runs/first")) if "tensorboard" not in n
    ]


def test_two_ranks_evaluate_a_remote_run(app, bucket, tmp_path):
    def judge(rank, world_size):
        os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
        import torch

        from msrec.launch.distributed import Process
        from msrec.launch.evaluation.evaluate import evaluate

        with changed_run(RUN) as folder:
            evaluate(folder, Process(rank, world_size, world_size, torch.device("cpu")))

    run_ranks(judge, 2)
    there = bucket.download("runs/first/predictions", tmp_path / "there")
    rows = pl.read_parquet(there / "test" / "*.parquet")
    assert rows["row_id"].n_unique() == len(rows) == 400


def test_calibration_and_explanation_are_sent(bucket):
    msrec.calibrate(RUN, device="cpu")
    explained = msrec.explain(RUN, scenarios=True)
    assert explained.scenarios is not None
    names = bucket.names("runs/first")
    assert "calibration.json" in names
    assert [name for name in names if name.startswith("explain/")]


def test_show_report_compare_and_predict_read_a_remote_run(app, bucket, tmp_path):
    msrec.evaluate(RUN, device="cpu")
    code, out, err = command("show", RUN)
    assert (code, "newest checkpoint step-" in out) == (0, True), err
    code, out, err = command("show", "s3://apps/store")
    assert (code, out.count("vectors")) == (0, 3), err
    msrec.report(tmp_path / "page.html", {"one": RUN})
    assert "one" in (tmp_path / "page.html").read_text()
    comparison = msrec.compare(RUN, f"{RUN}/predictions/test")
    assert comparison.metrics["auc"]["all"].difference == 0
    msrec.predict(RUN, app / "rows.parquet", "s3://apps/scores", device="cpu")
    scores = bucket.download("scores", tmp_path / "scores")
    here = msrec.predict(app / "runs/first", app / "rows.parquet", tmp_path / "here", device="cpu")
    assert here is not None
    read = [pl.read_parquet(f / "*.parquet") for f in (scores, tmp_path / "here")]
    assert read[0].equals(read[1])
    with pytest.raises(ValueError, match="must not be, be in or hold an input"):
        msrec.predict(RUN, app / "rows.parquet", f"{RUN}/predictions/mine")


def test_an_export_goes_to_the_store_and_scores_from_there(app, bucket, tmp_path):
    words = ("--no-compile", "--out", "s3://apps/exports/one")
    code, out, err = command("export", RUN, *words)
    assert code == 0, err
    names = bucket.names("exports/one")
    assert "export.json" in names
    assert ".export.json.partial" not in names
    code, out, err = command("export", RUN, *words)
    assert code == 2
    assert "s3://apps/exports/one must not exist yet" in err
    code, out, err = command(
        "score", "s3://apps/exports/one", app / "rows.parquet", "--out", tmp_path / "there.parquet"
    )
    assert code == 0, err
    here = ("--out", tmp_path / "here.parquet")
    assert command("export", app / "runs/first", "--no-compile", "--out", tmp_path / "e")[0] == 0
    assert command("score", tmp_path / "e", app / "rows.parquet", *here)[0] == 0
    one, other = (pl.read_parquet(tmp_path / f"{n}.parquet") for n in ("here", "there"))
    assert one.equals(other)
    assert np.std(one["score"].to_numpy()) > 0
    bucket.delete("exports/one/export.json")
    code, out, err = command("score", "s3://apps/exports/one", app / "rows.parquet", *here)
    assert (code, err.count("\n")) == (2, 1)
    assert "s3://apps/exports/one/export.json must exist, since it is written last" in err


def test_a_run_begins_with_the_weights_of_a_remote_run(app, bucket, tmp_path):
    def begin(source):
        root = tmp_path / source.replace("/", "_")
        config = load_config(
            None,
            [
                *(f"dataset={app}/data", f"run_root={root}", f"llm.store={app}/store", *BOTH),
                *(f"init_from={source}", "init_optimizer=true", "trainer.global_batch=96"),
                *("trainer.epochs=1", "embeddings.dim=8", "meta.rank=3"),
            ],
        )
        return run_ranks(fit, 1, config)

    (ours,) = begin(str(app / "runs/first"))
    (theirs,) = begin(RUN)
    assert theirs[0] == ours[0]  # losses
    with pytest.raises(ValueError, match="must be another run than the one to train, s3://apps/"):
        check_run_folder(
            load_config(
                None,
                [
                    *(f"dataset={app}/data", f"init_from={RUN}", "run_id=first"),
                    "trainer.copy_to=s3://apps/runs",
                ],
            )
        )


def test_the_next_day_goes_on_from_a_remote_run(app, bucket):
    config = training_config(None, [f"init_from={RUN}"], str(app / "data"))
    assert (str(config.init_from), config.run_id) == (RUN, "data")
    assert config.run_root == app / "runs"


def test_a_run_that_is_not_there_is_one_sentence(bucket):
    for words in (("evaluate", "s3://apps/none"), ("show", "s3://apps/none")):
        code, out, err = command(*words)
        assert (code, err.strip().count("\n")) == (2, 0), err
        assert err.startswith("error: s3://apps/none")
    code, out, err = command("evaluate", RUN, "--watch")
    assert "--watch must have the folder in which a run is trained" in err


def test_a_run_whose_config_came_back_is_of_other_hosts(bucket, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="must be a folder that all hosts share"):
        with changed_run(RUN):
            raise AssertionError
