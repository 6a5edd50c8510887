"""torchx components: the commands they launch, the mistakes they refuse, and a real run."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from tiny import tiny_dataset
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torchx.runner import get_runner
from torchx.specs import macros
from torchx.specs.finder import ComponentValidationException

from msrec.launch.cluster.elastic_agent import first_failed_rank

pytestmark = pytest.mark.slow

TORCHX = Path(sys.executable).parent / "torchx"
CONFIG = """
dataset: {root}/tiny
run_root: {root}/runs
embeddings: {{ dim: 8 }}
trainer: {{ global_batch: 96, epochs: 3, log_every: 5 }}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchx") / "a folder with spaces"
    tiny_dataset(folder / "tiny")
    (folder / "conf.yaml").write_text(CONFIG.format(root=folder))
    return folder / "conf.yaml"


def dry_run(component, *args, scheduler="local_cwd"):
    """(app, request to the scheduler) of `torchx run -s SCHEDULER --dryrun`."""
    with get_runner() as runner:
        info = runner.dryrun_component(component, list(args), scheduler)
    return info._app, info.request


def command(app):
    """Words of the command that bash runs, after torchx has replaced its macros."""
    role = macros.Values(img_root="", app_id="id", replica_id="0", rank0_env="X").apply(
        app.roles[0]
    )
    assert role.entrypoint == "bash"
    flag, line = role.args
    assert flag == "-c"
    return shlex.split(line)


def job_of(app):
    words = command(app)
    return words[words.index("--module") + 1 :]


@pytest.mark.parametrize(
    ("exits", "first"), [((1, -9), 1), ((-6, -9), 1), ((1, -11), 1), ((1, 1), 0)]
)
def test_of_ranks_that_failed_together_the_cause_is_first(exits, first):
    failures = {
        rank: ProcessFailure(rank, pid=1, exitcode=code, error_file="none")
        for rank, code in enumerate(exits)
    }
    for failure in failures.values():
        failure.timestamp = 7
    assert first_failed_rank(failures) == (first, failures[first])


@pytest.mark.parametrize("job", ["train", "encode"])
def test_a_job_runs_its_msrec_command_with_unchanged_overrides(config, job):
    overrides = ["run_id=mine", "embeddings.sharding={user_id: row_wise}"]
    overrides += ["llm.store=it's $HOME", "llm.model=$$ ${app_id} $(id)"]
    app, _ = dry_run(f"msrec.{job}", "-j", "1x2", "--", f"config={config}", *overrides)
    assert job_of(app) == ["msrec", job, str(config), *overrides]


ENTRY_POINTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def own_torchx(tmp_path_factory):
    """Function that runs torchx with the entry points of this checkout."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "msrec-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: msrec\nVersion: 9\n")
    groups = ENTRY_POINTS["entry-points"].items()
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for g, names in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(folder), *sys.path])

    def run(*args, path=path, **variables):
        return subprocess.run(
            [TORCHX, *args],
            env=os.environ | {"PYTHONPATH": path} | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.path = path
    return run


@pytest.mark.parametrize("nodes_and_ranks", ["0x2", "2x0", "3:2x1", "9999x1", "1x9999", "-1x2", ""])
def test_no_nodes_or_ranks_are_one_sentence(config, nodes_and_ranks):
    with pytest.raises(ComponentValidationException, match="-j must be nodes x ranks per node"):
        dry_run("msrec.train", f"--j={nodes_and_ranks}", "--", f"config={config}")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--rdzv_port=99999", "rendezvous port must be from 1024 to 65,535; got 99,999"),
        ("--max_restarts=-1", "restarts must be from 0 to 1,000; got -1"),
    ],
)
def test_an_option_out_of_range_is_one_sentence(config, option, sentence):
    with pytest.raises(ComponentValidationException, match=sentence):
        dry_run("msrec.train", option, "--", f"config={config}")


def test_a_folder_with_a_dollar_sign_reaches_torchrun_as_it_is(config):
    root = "run_root=/r/$HOME ${app_id} $$ 'x'"
    app, _ = dry_run("msrec.train", "--python", "/p$x/python", "--", f"config={config}", root)
    words = command(app)
    assert words[0] == "/p$x/python"
    assert words[words.index("--log-dir") + 1] == "/r/$HOME ${app_id} $$ 'x'/default/logs"


def test_runopts_names_a_library_that_is_missing(own_torchx, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    own_torchx = partial(own_torchx, path=os.pathsep.join([str(tmp_path), own_torchx.path]))
    done = own_torchx("runopts")
    assert done.returncode == 0, done.stderr
    assert 'which is not installed: pip install "msrec[ray]"' in done.stdout
    assert "nodelist" in done.stdout
    done = own_torchx("run", "-s", "ray", "msrec.evaluate", "--", "run=x")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_an_unknown_slurm_job_has_no_output_and_slurm_may_not_answer(own_torchx, tmp_path):
    for name in ("squeue", "sacct", "sinfo"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin"}
    done = own_torchx("log", "slurm://torchx/99", **path)
    assert done.returncode == 1
    assert "slurm must know the job 99 to print its output; it does not" in done.stderr
    done = own_torchx("list", "-s", "slurm", **path)
    assert done.returncode == 1
    assert "squeue or sacct must list the jobs of Slurm; neither answers here" in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_passes_on_the_run_folder_and_its_options():
    app, _ = dry_run("msrec.evaluate", "--", "run=runs/a b", "split=valid")
    assert job_of(app) == ["msrec", "evaluate", "runs/a b", "split=valid"]


def test_nodes_and_ranks_reach_torchrun(config):
    app, _ = dry_run("msrec.train", "-j", "2x4", "--max_restarts", "3", "--", f"config={config}")
    words = command(app)
    options = dict(zip(words, words[1:], strict=False))
    assert app.roles[0].num_replicas == 2
    assert (options["--nnodes"], options["--nproc-per-node"]) == ("2", "4")
    assert options["--max-restarts"] == "3"


def test_one_node_takes_any_free_port_and_several_meet_at_the_first(config):
    one, _ = dry_run("msrec.train", "-j", "1x2", "--", f"config={config}")
    two, _ = dry_run("msrec.train", "-j", "2x2", "--", f"config={config}")
    assert "localhost:0" in command(one)
    assert any(word.endswith("=localhost}:29500") for word in command(two))


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        (["-j", "1x2", "--cpu", "64"], "1"),
        (["-j", "2x4", "--cpu", "32", "--gpu", "4"], "8"),
        (["-j", "8x8", "-h", "msrec_h100x8"], "16"),
        (["-j", "1x8", "--cpu", "4", "--gpu", "8"], "1"),
    ],
)
def test_ranks_with_gpus_share_the_cores_and_others_have_one_thread(config, options, threads):
    app, _ = dry_run("msrec.train", *options, "--", f"config={config}")
    assert app.roles[0].env["OMP_NUM_THREADS"] == threads


def test_ranks_get_their_threads_and_no_shared_store(config):
    app, _ = dry_run("msrec.encode", "--threads", "4", "--", f"config={config}")
    environment = app.roles[0].env
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert environment["OMP_NUM_THREADS"] == "4"


def test_predict_passes_on_the_run_folder_and_its_options():
    app, _ = dry_run("msrec.predict", "--", "run=runs/a", "data=s3://b/new", "out=scores")
    assert job_of(app) == ["msrec", "predict", "runs/a", "data=s3://b/new", "out=scores"]


def test_plan_is_one_process_with_the_options_of_the_command(config):
    app, _ = dry_run("msrec.plan", "--", f"config={config}", "trainer.epochs=1", "--nodes=8")
    assert job_of(app) == ["msrec", "plan", str(config), "trainer.epochs=1", "--nodes=8"]
    words = command(app)
    assert words[words.index("--nproc-per-node") + 1] == "1"


def test_a_sweep_is_one_process_of_one_node():
    app, _ = dry_run("msrec.experiment", "--", "sweep=sweeps/a.yaml", "--jobs=2")
    assert job_of(app) == ["msrec", "experiment", "sweeps/a.yaml", "--jobs=2"]
    words = command(app)
    assert words[words.index("--nproc-per-node") + 1] == "1"


@pytest.mark.parametrize("job", ["train", "evaluate", "encode", "predict", "plan"])
def test_a_job_is_one_role_with_a_name_that_every_scheduler_accepts(config, job):
    first = "run=runs/demo" if job in ("evaluate", "predict") else f"config={config}"
    app, _ = dry_run(f"msrec.{job}", "--", first)
    assert re.fullmatch("[a-z0-9]+", app.roles[0].name)
    assert re.fullmatch("[a-z0-9]+", app.name)


def test_slurm_gets_a_task_per_node_with_the_same_command(config):
    app, request = dry_run(
        *("msrec.train", "-j", "2x2", "--", f"config={config}"), scheduler="slurm"
    )
    assert len(request.replicas) == 2
    script = str(request)
    assert "msrec.launch.cluster.elastic_agent" in script
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in script


REFUSED = {
    "no config": ([], "give config=... once after `--`; got nothing."),
    "two configs": (["config=a", "config=b"], "give config=... once after `--`; got config=a"),
    "no file": (["config=none.yaml"], "the config file none.yaml must exist; it does not."),
    "a secret": (["config=CONF", "dataset=s3://k:s3cr3t@app"], "s3://***@app. Put them"),
    "a secret where only the image has the config": (
        ["--image", "registry/app:1", "--", "config=/app/c.yaml", "dataset=s3://k:s3cr3t@app"],
        "s3://***@app. Put them",
    ),
    "unknown key": (["config=CONF", "trainer.epoch=3"], "trainer.epoch is not a known key; near"),
}


@pytest.mark.parametrize("job", ["train", "encode"])
@pytest.mark.parametrize(("args", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_refused_before_anything_is_launched(config, job, args, sentence):
    """torchx prints only the message of this exception."""
    args = [arg.replace("CONF", str(config)) for arg in args]
    with pytest.raises(ComponentValidationException) as refused:
        dry_run(f"msrec.{job}", *(() if "--" in args else ("--",)), *args)
    assert "s3cr3t" not in str(refused.value)
    assert sentence in str(refused.value)


def test_evaluate_without_a_run_is_refused():
    with pytest.raises(ComponentValidationException, match="give run=... once after `--`"):
        dry_run("msrec.evaluate", "--", "split=test")


def test_a_config_that_only_the_image_has_is_left_to_the_ranks():
    app, _ = dry_run("msrec.train", "--image", "registry/app:1", "--", "config=/app/c.yaml")
    assert job_of(app)[2] == "/app/c.yaml"
    assert command(app)[0] == "python"


def torchx(*args, cwd):
    if not TORCHX.is_file():
        pytest.skip("the torchx command is not installed next to this interpreter")
    return subprocess.run(
        [TORCHX, *args], cwd=cwd, capture_output=True, text=True, timeout=150, check=False
    )


def test_two_ranks_train_through_torchx(config):
    done = torchx(
        *("run", "-s", "local_cwd", "msrec.train", "-j", "1x2", "--"),
        *(f"config={config}", "trainer.epochs=1", "run_id=through-torchx"),
        cwd=config.parent,
    )
    assert done.returncode == 0, done.stderr
    run = config.parent / "runs/through-torchx"
    assert (run / "checkpoints/step-00000021/COMMIT").is_file()
    assert json.loads((run / "plan.json").read_text())["world_size"] == 2
    assert "best validation AUC" in done.stderr
    assert len(list((run / "logs").glob("*/attempt_0/[01]/stderr.log"))) == 2


def test_a_mistake_that_only_the_ranks_can_see_ends_with_one_sentence(config):
    done = torchx(
        *("run", "-s", "local_cwd", "msrec.train", "-j", "1x1", "--max_restarts", "2", "--"),
        *(f"config={config}", "dataset=nowhere", "run_id=mistaken"),
        cwd=config.parent,
    )
    assert done.returncode == 1
    assert "error on rank 0: nowhere/dataset.yaml must exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((config.parent / "runs/mistaken/logs").glob("*/attempt_*"))) == 1
