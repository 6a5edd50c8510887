"""`msrec launch`: submission, status and end of a job, and mistakes of a user."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny import tiny_dataset
from torchx import specs

from msrec.launch.cluster.job_specs import train_spec
from msrec.launch.cluster.profiles import Profile, Target, load_profile
from msrec.launch.cluster.status import (
    _rank_of,
    _status_without_ranks,
    _with_job_state,
    log_file,
    print_status,
)
from msrec.launch.cluster.submit import cancel, submit
from msrec.launch.cluster.submitted import Submitted, read_submitted
from msrec.launch.config.run_config import load_config
from msrec.launch.rank_errors import Failure, last_failure
from msrec.launch.rank_states import RankState, read_ranks
from msrec.launch.training.run_status import Status

pytestmark = pytest.mark.slow

CONFIG = """
dataset: {root}/tiny
run_root: {root}/runs
embeddings: {{ dim: 8 }}
trainer: {{ global_batch: 96, epochs: 1, log_every: 5 }}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    tiny_dataset(folder / "tiny")
    (folder / "conf.yaml").write_text(CONFIG.format(root=folder))
    return folder / "conf.yaml"


def spec(config):
    return train_spec(load_config(config, ["run_id=x"]))


def msrec(config, *args):
    return subprocess.run(
        [sys.executable, "-m", "msrec", "launch", *args],
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_local_job_is_followed_to_its_end_and_leaves_a_record_of_its_submission(config):
    done = msrec(config, "train", "conf.yaml", "run_id=whole", "--on", "local", "-j", "1x2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best validation AUC" in done.stdout
    assert "SUCCEEDED" in done.stdout
    run = config.parent / "runs/whole"
    assert load_config(run / "submitted.yaml") == load_config(config, ["run_id=whole"])
    submitted = read_submitted(run)
    assert (submitted.job, submitted.profile, submitted.nodes_and_ranks) == (
        "train",
        "local",
        "1x2",
    )
    status = msrec(config, "status", str(run))
    assert status.returncode == 0
    assert "train on local, 1x2" in status.stdout
    assert "done, step 21 of 21" in status.stdout
    logs = msrec(config, "logs", str(run), "--rank", "0")
    assert "step 21/21" in logs.stdout
    other = msrec(config, "logs", str(run), "--rank", "5")
    assert other.returncode == 2
    assert "the rank must be one of 0 to 1; got 5" in other.stderr


def test_a_job_that_fails_ends_with_the_sentence_of_its_first_rank(config):
    done = msrec(config, "train", "conf.yaml", "run_id=bad", "dataset=nowhere", "-j", "1x2")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    status = msrec(config, "status", "runs/bad")
    assert status.returncode == 1
    assert status.stdout.startswith("runs/bad: failed\ntrain on local, 1x2: local_cwd://")
    assert "The error (its output is in" in status.stdout
    assert "nowhere/dataset.yaml must exist" in " ".join(status.stdout.split())
    assert "No rank began to train." in status.stdout
    assert "Traceback" not in status.stdout


def test_a_cancelled_job_saves_a_checkpoint_and_resumes(config):
    run = config.parent / "runs/cancelled"
    options = ("run_id=cancelled", "trainer.epochs=500", "trainer.patience=500")
    job = subprocess.Popen(
        [sys.executable, "-m", "msrec", "launch", "train", "conf.yaml", *options],
        cwd=config.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 60
    while not (run / "metrics.jsonl").is_file() and time.monotonic() < end:
        time.sleep(0.1)
    cancelled = msrec(config, "cancel", str(run))
    assert cancelled.returncode == 0, cancelled.stderr
    output, _ = job.communicate(timeout=30)
    assert job.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in output, output
    status = msrec(config, "status", str(run))
    assert "stopped, step" in status.stdout
    step = int(status.stdout.split("stopped, step ")[1].split(" of")[0].replace(",", ""))
    again = msrec(config, "train", "conf.yaml", *options, f"trainer.max_steps={step + 1}")
    assert again.returncode == 0, again.stdout
    assert f"at step {step + 1} of {step + 1}" in again.stdout or "best validation" in again.stdout
    late = msrec(config, "cancel", str(run))
    assert late.returncode == 2
    assert "must run on this host to be cancelled" in late.stderr


@pytest.mark.parametrize("profile", ["local", "slurm", "ray"])
def test_a_dry_run_shows_what_would_be_submitted_and_writes_nothing(config, profile):
    if profile == "ray":
        pytest.importorskip("ray")
    shown = msrec(
        config, "train", "conf.yaml", "run_id=dry", "--on", profile, "-j", "2x4", "--dry-run"
    )
    assert shown.returncode == 0, shown.stderr
    assert "msrec.launch.cluster.elastic_agent" in shown.stdout
    assert "--nproc-per-node 4" in shown.stdout
    assert "runs/dry/submitted.yaml" in shown.stdout
    assert not (config.parent / "runs/dry").exists()


@pytest.mark.parametrize(
    ("name", "extra"),
    [("kubernetes",) * 2, ("kuberay", "kubernetes"), ("aws_batch",) * 2, ("ray",) * 2],
)
def test_a_missing_library_of_a_scheduler_is_named_with_its_extra(config, monkeypatch, name, extra):
    monkeypatch.setattr("msrec.launch.cluster.submit.find_spec", lambda library: None)
    target = Target(name, load_profile(name), "1x1")
    with pytest.raises(ValueError, match=f'--on {name} needs the library .*"msrec\\[{extra}\\]"'):
        submit(spec(config), target, Console(), dry_run=True)


def test_a_site_may_add_profiles(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("big: {scheduler: slurm, gpu: 8, cpu: 96, cfg: {partition: h100}}\n")
    big = load_profile("big", file)
    node = big.launch_options("1x1").resource
    assert (node.gpu, node.cpu, big.cfg) == (8, 96, {"partition": "h100"})
    assert load_profile("local", file).scheduler == "local_cwd"
    file.write_text("big: {scheduler: slurm, gpus: 8}\n")
    with pytest.raises(ValueError, match=r"site.yaml: big.gpus"):
        load_profile("big", file)
    with pytest.raises(ValueError, match="got 'slrum', near it are slurm"):
        load_profile("slrum")
    with pytest.raises(FileNotFoundError, match="none.yaml must exist"):
        load_profile("big", tmp_path / "none.yaml")


PROFILES = {
    "scheduler": ("scheduler: slrum", "x.scheduler: must be one of .*slurm.*; got 'slrum'"),
    "resource": (
        "scheduler: slurm, resource: msrec_h100",
        "x.resource: a named resource must be known; got 'msrec_h100', near it are msrec_h100x8",
    ),
    "two sizes": (
        "scheduler: slurm, resource: msrec_cpu8, gpu: 8",
        "x.resource must be given without gpu",
    ),
    "no list": ("scheduler: slurm, cfg: [partition]", "x.cfg: .*keys with values"),
}


@pytest.mark.parametrize(("text", "sentence"), PROFILES.values(), ids=PROFILES)
def test_a_mistake_in_a_profile_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "site.yaml"
    file.write_text(f"x: {{{text}}}\n")
    with pytest.raises(ValueError, match=sentence) as refused:
        load_profile("x", file)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


def test_a_profile_may_name_its_nodes_size(tmp_path):
    file = tmp_path / "site.yaml"
    for name in ("msrec_h100x8", "aws_p5.48xlarge"):
        file.write_text(f"x: {{scheduler: slurm, resource: {name}}}\n")
        node = load_profile("x", file).launch_options("1x1").resource
        assert node == specs.named_resources[name]


OPTIONS = {
    "unknown": ({"quue": "ads"}, "must hold options of kubernetes; got 'quue', near it are queue"),
    "left out": ({}, "Required run option: queue"),
    "of another type": ({"queue": "a", "volumes": "data:/d"}, "volumes, must be of type: .*List"),
    "of another form": ({"queue": "a", "volumes": ["data"]}, "volumes must be CLAIM:/PATH; got 'd"),
}


@pytest.mark.parametrize(("cfg", "sentence"), OPTIONS.values(), ids=OPTIONS)
def test_a_mistake_in_a_profiles_options_is_one_sentence(config, cfg, sentence):
    pytest.importorskip("kubernetes")
    profile = Profile(scheduler="kubernetes", image="registry/msrec:1", cfg=cfg)
    with pytest.raises(ValueError, match=sentence) as refused:
        submit(spec(config), Target("x", profile, "1x1"), Console(), dry_run=True)
    assert type(refused.value) is ValueError
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["dataset", "run_root", "plan", "init_from", "llm.store"])
def test_a_relative_path_is_refused_where_the_job_starts_in_another_folder(config, key):
    values = load_config(config, [f"{key}=here"])
    with pytest.raises(ValueError, match=f"^{key} must be an absolute path, since kubernetes"):
        Profile(scheduler="kubernetes").refuse_relative_paths(values)
    Profile(scheduler="slurm").refuse_relative_paths(values)
    elsewhere = load_config(config, ["dataset=s3://ads/set"])
    Profile(scheduler="kubernetes").refuse_relative_paths(elsewhere)


MISTAKES = {
    "j": (["-j", "two"], "with up to 4,096 nodes of up to 256 ranks; got 'two'"),
    "key": (["trainer.epoch=3"], "trainer.epoch is not a known key"),
    "profile": (["--on", "moon"], "--on must name a profile; got 'moon'"),
}


@pytest.mark.parametrize(("args", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_submitted(config, args, sentence):
    refused = msrec(config, "train", "conf.yaml", "run_id=refused", *args)
    assert refused.returncode == 2
    assert sentence in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (config.parent / "runs/refused").exists()


CORRECTIONS = [
    ("trains", "pending", "waits", 0),
    ("failed", "pending", "waits", 0),
    ("failed", "running", "restarts", 0),
    ("failed", "failed", "failed", 1),
    ("trains", "failed", "failed", 1),
    ("silent", "cancelled", "failed", 1),
    ("trains", "running", "trains", 0),
    ("done", "ended", "done", 0),
    ("stopped", "pending", "stopped", 0),
]


@pytest.mark.parametrize(("reported", "job_state", "word", "exit_status"), CORRECTIONS)
def test_the_scheduler_knows_of_ranks_that_were_killed(reported, job_state, word, exit_status):
    status = _with_job_state(Status(reported, []), job_state, silent_s=10)
    assert (status.word, status.exit_status) == (word, exit_status)


def test_ranks_that_failed_long_ago_do_not_start_again():
    assert _with_job_state(Status("failed", []), "running", silent_s=400).word == "failed"


def error(folder, rank, stamp, text):
    file = folder / "x_1/attempt_0" / str(rank) / "error.json"
    file.parent.mkdir(parents=True)
    message = {"message": text, "extraInfo": {"timestamp": str(stamp), "py_callstack": text}}
    file.write_text(json.dumps({"message": message}))


def test_the_first_error_is_found_and_none_of_an_earlier_submission(tmp_path):
    error(tmp_path, 0, 20, "a collective gave up")
    error(tmp_path, 1, 10, "the reason")
    failure = last_failure(tmp_path, since=0.0)
    assert failure.message == "the reason"
    assert failure.folder.name == "1"
    assert last_failure(tmp_path, since=time.time() + 60) is None


def test_errors_of_the_same_second_are_ordered_by_their_files_and_named_by_rank(tmp_path):
    """Stamps are whole seconds, and the effect on a rank of another node has the same stamp."""
    for rank, written, text in ((0, 10.7, "a collective gave up"), (1, 10.2, "the reason")):
        error(tmp_path / "logs", rank, 10, text)
        folder = tmp_path / f"logs/x_1/attempt_0/{rank}"
        os.utime(folder / "error.json", (written, written))
        state = RankState(rank=rank + 4, host="n2", pid=1, time=1, phase="failed", logs=str(folder))
        (tmp_path / "ranks").mkdir(exist_ok=True)
        (tmp_path / f"ranks/{rank + 4}.json").write_text(state.model_dump_json())
    failure = last_failure(tmp_path / "logs", since=0.0)
    assert failure.message == "the reason"
    ranks = read_ranks(tmp_path)
    assert _rank_of(ranks, failure) == ", of rank 5 on n2"
    assert _rank_of(ranks, Failure("", tmp_path)) == ""


def test_only_a_running_job_of_msrec_launch_is_cancelled(tmp_path):
    with pytest.raises(ValueError, match="must have been submitted by `msrec launch`; it was not"):
        cancel(tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    for changes in ({"time": 0.0}, {"host": "elsewhere"}):  # a later process with its number
        submitted_by(sleeper.pid, **changes).save(tmp_path)
        with pytest.raises(ValueError, match="must run on this host to be cancelled"):
            cancel(tmp_path)
    submitted_by(sleeper.pid).save(tmp_path)
    cancel(tmp_path)
    assert sleeper.wait(10) == -signal.SIGTERM


def submitted_by(pid, **changes):
    values = {"job": "train", "profile": "local", "scheduler": "local_cwd", "handle": "x://y/z"}
    values |= {"nodes_and_ranks": "1x1", "time": time.time() + 1, "pid": pid}
    return Submitted(**values | changes)


def test_a_job_that_runs_is_not_submitted_again_and_its_config_stays(config, tmp_path):
    job = train_spec(load_config(config, ["run_id=x", f"run_root={tmp_path}"]))
    job.prepare()
    before = (job.folder / "submitted.yaml").read_text()
    submitted_by(os.getpid()).save(job.folder)
    again = train_spec(load_config(config, ["run_id=x", f"run_root={tmp_path}", "seed=7"]))
    with pytest.raises(ValueError, match=r"x must have one job at a time; x://y/z is running\."):
        submit(again, Target("local", load_profile("local"), "1x1"), Console())
    assert (job.folder / "submitted.yaml").read_text() == before


def attempt(folder, agent, number, at, **texts):
    """Writes the errors of an attempt that began at `at`: rank_RANK=(seconds later, text)."""
    attempt = folder / f"logs/{agent}/attempt_{number}"
    attempt.mkdir(parents=True)
    for rank, (after, text) in texts.items():
        file = attempt / rank.removeprefix("rank_") / "error.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"message": text}))
        os.utime(file, (at + after, at + after))
    os.utime(attempt, (at, at))


def test_the_error_is_the_first_one_of_the_last_attempt_on_all_nodes(tmp_path):
    attempt(tmp_path, "x_a", 0, 100, rank_0=(9, "old"))
    attempt(tmp_path, "x_b", 0, 100, rank_0=(8, "older"))
    assert last_failure(tmp_path / "logs", 0).message == "older"
    attempt(tmp_path, "x_a", 1, 120, rank_0=(7, "effect"))
    attempt(tmp_path, "x_b", 1, 121, rank_0=(5, "cause"))
    assert last_failure(tmp_path / "logs", 0).message == "cause"
    attempt(tmp_path, "x_c", 0, 200, rank_0=(1, "of the job's retry"))
    assert last_failure(tmp_path / "logs", 0).message == "of the job's retry"
    assert last_failure(tmp_path / "logs", 202) is None


def test_a_refused_step_is_explained_by_the_error_before(tmp_path):
    attempt(tmp_path, "x_a", 0, 100, rank_0=(5, "cause"))
    attempt(tmp_path, "x_a", 1, 110, rank_0=(4, "a.RepeatedFailure: must get past step 4"))
    failure = last_failure(tmp_path / "logs", 0)
    assert (failure.message, failure.time) == ("cause", 114)
    attempt(tmp_path, "x_a", 2, 120, rank_0=(3, "another"))
    assert last_failure(tmp_path / "logs", 0).message == "another"
    assert last_failure(tmp_path / "logs", 0).time == 123


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """Function that prints the status of a run whose first attempt failed at 109 s.

    The second attempt began at 200 s. The arguments are its phase, the state of the job and the
    errors of the second attempt.
    """

    def printed(phase, state, **errors):
        trace = "Traceback\n" + "  line\n" * 60
        attempt(tmp_path, "x_1", 0, 100, rank_0=(9, f"{trace}ValueError: first"))
        attempt(tmp_path, "x_1", 1, 190, **{k: (at, trace + e) for k, (at, e) in errors.items()})
        (tmp_path / "ranks").mkdir()
        rank = {"rank": 0, "host": "n", "pid": os.getpid(), "phase": phase, "step": 9}
        rank |= {"time": 300, "start": 200, "logs": str(tmp_path / "logs/x_1/attempt_1/0")}
        (tmp_path / "ranks/0.json").write_text(RankState(**rank).model_dump_json())
        submitted_by(1, time=50).save(tmp_path)
        monkeypatch.setattr("msrec.launch.cluster.status.job_state", lambda submitted: (state, ""))
        console = Console(width=200, file=io.StringIO())
        print_status(tmp_path, console, now=301)
        return console.file.getvalue().splitlines()

    return printed


FIRST, SECOND = "ValueError: first", "ValueError: second"


def test_the_first_line_is_the_state_and_an_error_of_a_finished_run_is_not_shown(printed):
    lines = printed("done", "succeeded")
    assert ": done, step 9 of 0" in lines[0]
    assert lines[1] == "train on local, 1x1: x://y/z succeeded"
    assert FIRST not in "".join(lines)
    assert len(lines) == 7


def test_the_error_of_a_failed_job_is_that_of_its_last_start_and_its_stack_is_at_the_end(printed):
    lines = printed("failed", "failed", rank_0=(110, SECOND))
    assert ": failed, step 9 of 0" in lines[0]
    assert lines[3].startswith("The error, of rank 0 on n (its output is in ")
    assert lines[3].endswith(f"attempt_1/0): {SECOND}")
    assert lines[-63:-60] == ["The stack of the error:", "  Traceback", "    line"]
    assert lines[-1] == f"  {SECOND}"
    assert FIRST not in "".join(lines)


def test_a_job_whose_last_start_was_killed_does_not_show_the_error_of_an_earlier_one(printed):
    lines = printed("trains", "failed")
    assert ": failed, step 9 of 0" in lines[0]
    assert lines[2] == "The job is failed; its ranks were killed before they could report it."
    assert FIRST not in "".join(lines)


def test_an_error_after_which_a_job_went_on_is_one_line_while_it_trains(printed):
    lines = printed("trains", "running")
    assert ": trains, step 9 of 0" in lines[0]
    assert lines[2].startswith("The job went on after an error (its output is in ")
    assert lines[2].endswith(f"attempt_0/0): {FIRST}")
    assert len(lines) == 8


def test_a_job_whose_ranks_start_again_says_why(printed):
    lines = printed("failed", "running", rank_0=(110, SECOND))
    assert ": restarts, step 9 of 0" in lines[0]
    why = "The last error, after which the ranks start again, of rank 0 on n (its output is in "
    assert lines[3].startswith(why)
    assert lines[3].endswith(f"): {SECOND}")
    assert len(lines) == 9


STATES = {
    ("train", "running", False): ("starts", 0),
    ("evaluate", "running", False): ("runs", 0),
    ("evaluate", "running", True): ("restarts", 0),
    ("evaluate", "pending", True): ("waits", 0),
    ("evaluate", "succeeded", True): ("done", 0),
    ("evaluate", "failed", False): ("failed", 1),
    ("train", "forgotten", True): ("failed", 1),
    ("train", "forgotten", False): ("forgotten", 1),
}


@pytest.mark.parametrize(("job", "state", "has_error"), STATES)
def test_without_a_report_of_a_rank_the_state_is_that_of_the_job(job, state, has_error):
    failure = Failure(FIRST, Path()) if has_error else None
    status = _status_without_ranks(submitted_by(1, job=job), state, failure)
    assert (status.word, status.exit_status) == STATES[job, state, has_error]


def test_the_status_is_printed_without_loading_torch_or_torchx():
    code = "import msrec.launch.cluster.status, msrec.tools.cli.main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"torch", "torchrec", "torchx", "numpy", "polars", "pyarrow", "transformers", "fsspec"}
    assert "pydantic" in done.stdout.split()
    assert not slow & set(done.stdout.split())


def test_the_output_of_a_job_without_heartbeat_is_that_of_its_last_attempt(tmp_path):
    folder = tmp_path / "jobs" / "evaluate-test"
    for attempt in (2, 9, 10):
        file = folder / f"logs/x_1/attempt_{attempt}/1/stdout.log"
        file.parent.mkdir(parents=True)
        file.write_text(f"attempt {attempt}\n")
    assert log_file(folder, 1, "stdout").read_text() == "attempt 10\n"
    with pytest.raises(FileNotFoundError, match="logs must have the output of rank 3; it has none"):
        log_file(folder, 3, "stdout")
    other = folder / "logs/x_2/attempt_0/1/stdout.log"
    other.parent.mkdir(parents=True)
    other.write_text("other node")
    with pytest.raises(ValueError, match="each of 2 nodes has a rank 1"):
        log_file(folder, 1, "stdout")
    submitted_by(1, time=time.time() + 9).save(folder)  # all of that is of an earlier submission
    with pytest.raises(FileNotFoundError, match="must have the output of rank 1"):
        log_file(folder, 1, "stdout")
