"""Options of a job on every component and in profiles: environment, mounts, name, retries."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torchx import specs
from torchx.runner import get_runner
from torchx.specs.finder import ComponentValidationException

from msrec.launch.cluster.job_specs import train_spec
from msrec.launch.cluster.profiles import Profile, Target, load_profile
from msrec.launch.cluster.resources import a100x8, h100x8, node_resource
from msrec.launch.cluster.schedulers.slurm_states import components_of
from msrec.launch.cluster.submit import _dry_run, torchx_app
from msrec.launch.config.run_config import load_config

pytestmark = pytest.mark.slow

VALUES = {"A": "it's $HOME $(id) $$ ${app}", "NCCL_SOCKET_IFNAME": "^docker,lo", "EMPTY": ""}
WORDS = ["--env", ",".join(f"{k}={v or repr('')}" for k, v in VALUES.items())]
WORDS += ["--max_retries", "2"]
IMAGE = ["--image", "registry/msrec:1"]
FIRST = {"evaluate": "run=r", "predict": "run=r"}


@pytest.fixture
def dry_run(tmp_path, monkeypatch):
    """Function that returns (app, request) of `torchx run --dryrun msrec.JOB`."""
    (tmp_path / "conf.yaml").write_text("dataset: data\n")
    monkeypatch.chdir(tmp_path)

    def made(job, *words, scheduler="local_cwd", cfg=None):
        words = [*words, "--", FIRST.get(job, "config=conf.yaml")]
        with get_runner() as runner:
            info = runner.dryrun_component(f"msrec.{job}", words, scheduler, cfg or {})
        return info._app, info.request

    return made


@pytest.mark.parametrize("job", ["train", "evaluate", "predict", "plan", "encode"])
def test_every_component_takes_environment_mounts_name_and_retry_policy(dry_run, job):
    mounts = ["--mounts", "type=bind,src=/a,dst=/b,readonly,type=volume,src=fs,dst=/c"]
    app, _ = dry_run(job, *WORDS, *mounts, "--name", "first", "--retry_policy", "REPLICA")
    (role,) = app.roles
    assert (app.name, role.name, role.max_retries) == ("first", job, 2)
    assert role.retry_policy == specs.RetryPolicy.REPLICA
    assert role.mounts == [
        specs.BindMount("/a", "/b", read_only=True),
        specs.VolumeMount("fs", "/c", read_only=False),
    ]
    assert specs.macros.Values("", "", "", "").substitute(role.env["A"]) == VALUES["A"]
    assert "EMPTY" not in role.env
    assert role.env["OMP_NUM_THREADS"] == "1"


def test_a_job_has_its_variables_on_slurm_whatever_is_in_them(dry_run, tmp_path):
    _, request = dry_run("train", "-j", "2x1", *WORDS, "--name", "first", scheduler="slurm")
    srun = tmp_path / "srun"  # runs what each node would run; `bash` prints its variables
    srun.write_text('#!/bin/sh\nwhile [ "$1" != env ]; do shift; done\nexec "$@"\n')
    (tmp_path / "bash").write_text("#!/bin/sh\nenv -0\n")
    for file in (srun, tmp_path / "bash"):
        file.chmod(0o755)
    script = str(request).partition("#!/bin/bash")[2]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["/bin/bash", "-c", script], env=environment, capture_output=True)
    lines = done.stdout.decode().split("\0")
    assert f"A={VALUES['A']}" in lines
    assert "NCCL_SOCKET_IFNAME=^docker,lo" in lines
    assert "TORCHX_JOB_ID=slurm://torchx/7" in lines
    assert script.count("--export=ALL env ") == 2


def test_the_name_of_a_slurm_job_is_shown_and_does_not_hide_its_nodes(
    dry_run, tmp_path, monkeypatch
):
    _, request = dry_run("train", "-j", "2x1", "--name", "lr-high", scheduler="slurm")
    names = [w for w in shlex.split(str(request), comments=False) if w.startswith("--job-name=")]
    assert names == ["--job-name=lr-high.train-0", "--job-name=lr-high.train-1"]
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '7|lr-high.train-0|RUNNING|n1|None'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (node,) = components_of("7")
    assert (node.name, node.host) == ("train-0", "n1")


def test_a_retry_of_one_pod_restarts_it_and_one_of_the_job_all(dry_run):
    pytest.importorskip("kubernetes")
    actions = {}
    for policy in ("APPLICATION", "REPLICA"):
        words = ["-j", "1:2x1", *IMAGE, *WORDS, "--retry_policy", policy]
        _, request = dry_run("train", *words, scheduler="kubernetes", cfg={"queue": "q"})
        tasks = request.resource["spec"]["tasks"]
        assert [task["minAvailable"] for task in tasks] == [1, 0]
        actions[policy] = {(p["event"], p["action"]) for t in tasks for p in t["policies"]}
    assert actions["APPLICATION"] == {("PodEvicted", "RestartJob"), ("PodFailed", "RestartJob")}
    assert actions["REPLICA"] == {("PodEvicted", "RestartPod"), ("PodFailed", "RestartPod")}


def test_kubernetes_does_not_expand_a_value(dry_run):
    pytest.importorskip("kubernetes")
    _, request = dry_run("train", *IMAGE, *WORDS, scheduler="kubernetes", cfg={"queue": "q"})
    (container,) = request.resource["spec"]["tasks"][0]["template"]["spec"]["containers"]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    # Kubernetes replaces $(NAME) by a variable, and $$ by one dollar.
    assert re.sub(r"\$\$|\$\(.*?\)", "$", values["A"]) == VALUES["A"]


MISTAKES = {
    "name": (["--name", "Lr"], "a job's name must be up to 30 small letters, .*; got 'Lr'"),
    "variable": (["--env", "A B=1"], "a name of letters, digits and underscores; got 'A B'"),
    "secret": (["--env", "A=s3://k:s3cr3t@x"], r"A must be a URL without cred.*s3://\*\*\*@x"),
    "mount": (["--mounts", "type=bind,src=/a"], "got 'type=bind,src=/a' .torchx: dst"),
    "mount type": (["--mounts", "src=/a"], "a mount must be type=bind.*got 'src=/a'"),
    "policy": (["--retry_policy", "ALL"], "must be APPLICATION or REPLICA; got 'ALL'"),
}


@pytest.mark.parametrize(("words", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_an_option_is_one_sentence(dry_run, words, sentence):
    with pytest.raises(ComponentValidationException, match=sentence):
        dry_run("train", *words)


def test_named_nodes_ask_for_the_network_of_their_machines():
    """torchx's own names of the machines ask for EFA devices: without them NCCL uses TCP."""
    own = specs.named_resources
    assert h100x8() == own["aws_p5.48xlarge"]
    assert a100x8() == own["aws_p4de.24xlarge"]
    devices = [node.devices["vpc.amazonaws.com/efa"] for node in (h100x8(), a100x8())]
    assert devices == [32, 4]


NODES = {
    "cpu": ({"cpu": 8}, {}),
    "gpu": ({"gpu": 8}, {"NCCL_DEBUG": "WARN"}),
    "efa": ({"resource": "msrec_h100x8"}, {"NCCL_DEBUG": "WARN", "FI_EFA_USE_HUGE_PAGE": "0"}),
    "replaced": ({"gpu": 8, "env": {"NCCL_DEBUG": "INFO"}}, {"NCCL_DEBUG": "INFO"}),
    "left out": ({"gpu": 8, "env": {"NCCL_DEBUG": ""}}, {}),
}


def profile(tmp_path, text):
    (tmp_path / "site.yaml").write_text(f"x: {{{text}}}\n")
    return load_profile("x", tmp_path / "site.yaml")


@pytest.mark.parametrize(("node", "variables"), NODES.values(), ids=NODES)
def test_a_profile_has_defaults_for_nccl_that_it_may_replace(node, variables):
    target = Target("x", Profile(scheduler="slurm", **node), "2x1")
    app = torchx_app(train_spec(load_config_of_data()), target)
    env = app.roles[0].env
    assert {k: v for k, v in env.items() if k.startswith(("NCCL", "FI_"))} == variables


def load_config_of_data():
    folder = Path(os.environ["PYTEST_CURRENT_TEST"].split("::")[0]).parent
    return load_config(folder.parents[1] / "configs/demo.yaml", [])


YAML = {
    "time: 30": "30",
    "time: 1:30:00": "1:30:00",
    "time: 30:00": "30:00",
    "time: 2-12:00:00": "2-12:00:00",
    "account: 00123": "00123",
}


@pytest.mark.parametrize(("text", "given"), YAML.items())
def test_an_unquoted_number_reaches_slurm_as_it_is_written(tmp_path, text, given):
    loaded = profile(tmp_path, f"scheduler: slurm, cfg: {{ {text} }}")
    app = torchx_app(train_spec(load_config_of_data()), Target("x", loaded, "1x1"))
    with get_runner() as runner:
        script = str(_dry_run(runner, app, loaded).request)
    assert f"--{text.partition(':')[0]}={given} " in script.replace("\n", " ")


def test_numbers_in_env_are_texts_and_others_must_be_quoted(tmp_path):
    loaded = profile(tmp_path, "scheduler: slurm, env: { NCCL_IB_DISABLE: 1, UMASK: 0022 }")
    assert loaded.launch_options("1x1").env == {"NCCL_IB_DISABLE": "1", "UMASK": "0022"}
    for text in ("true", "1.10", "null", "[a]"):
        with pytest.raises(ValueError, match=r"x.env: must have texts or whole numbers; got A: "):
            profile(tmp_path, f"scheduler: slurm, env: {{ A: {text} }}")


IGNORED = {
    "mounts": ("mounts: ['type=bind,src=/a,dst=/b']", "mounts must be for the scheduler kube"),
    "policy": (
        "retry_policy: REPLICA",
        "the retry policy REPLICA must be for the scheduler kubernetes; got slurm",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), IGNORED.values(), ids=IGNORED)
def test_options_that_a_scheduler_ignores_are_refused(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=f"site.yaml: x: {sentence}"):
        profile(tmp_path, f"scheduler: slurm, {text}")
    profile(tmp_path, f"scheduler: kubernetes, {text}")


def test_a_node_without_gpus_has_no_devices():
    assert node_resource(2, 0, 1024, None).devices == {}
