"""The request that every component sends to every scheduler.

The whole requests are in tests/launch/golden/. After an intended change, update and review them:

    UPDATE_GOLDEN=1 pytest tests/launch/test_cluster_dry_runs.py && git diff tests/launch/golden
"""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from torchx.runner import get_runner

from msrec.launch.cluster.job_specs import convert_spec, encode_spec
from msrec.launch.cluster.profiles import Profile, Target
from msrec.launch.cluster.submit import _dry_run, torchx_app
from msrec.launch.config.run_config import load_config

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).with_name("golden")
# Component -> its arguments behind `--`.
JOBS = {
    "convert": ["raw=raw", "out=app", "--split=time"],
    "train": ["config=conf.yaml"],
    "evaluate": ["run=runs/first"],
    "encode": ["config=conf.yaml"],
    "predict": ["run=runs/first"],
}
# Component -> the words of its command, if they are not the value of the first argument.
WORDS = {"convert": ["tables", "raw", "app", "--engine=ranks", "--split=time"]}
OF_KUBERNETES = {
    "queue": "ads",
    "namespace": "rec",
    "volumes": ["data:/data", "cache:/root/.cache"],
    "secrets": ["s3"],
    "secret_env": ["HF_TOKEN:hugging-face/token"],
    "image_pull_secrets": ["registry"],
    "node_selector": ["pool:gpu"],
    "tolerations": ["nvidia.com/gpu:NoSchedule", "team:ads:NoExecute"],
}
CONTAINERS = ["--image", "registry/msrec:1", "-h", "msrec_a100x8", "--max_retries", "3"]
# Scheduler -> its options, and those of the component.
SCHEDULERS = {
    "local_cwd": ({"log_dir": "logs"}, []),
    "slurm": (
        {"partition": "gpu", "account": "ads", "gres": "gpu:8", "exclusive": True},
        ["-h", "msrec_h100x8", "--max_retries", "3"],
    ),
    "kubernetes": (OF_KUBERNETES, CONTAINERS),
    "aws_batch": (
        {"queue": "ads", "user": "ads", "volumes": ["fs-0123abcd:/data", "/fsx:/fsx"]},
        CONTAINERS,
    ),
    "ray": ({"dashboard_address": "head:8265"}, ["--image", ".", "--python", "python"]),
}
LIBRARY = {"kubernetes": "kubernetes", "aws_batch": "boto3", "ray": "ray"}
# Variable with the address of the first node.
RANK0 = {
    "local_cwd": "TORCHX_RANK0_HOST",
    "slurm": "SLURM_JOB_NODELIST_HET_GROUP_0",
    "kubernetes": "VC_{JOB}_0_HOSTS",
    "aws_batch": "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS",
    "ray": "TORCHX_RANK0_HOST",
}
PAIRS = [(job, scheduler) for job in JOBS for scheduler in SCHEDULERS]
RAY_JOBS = ("convert", "encode")
OF_KUBERAY = {name: value for name, value in OF_KUBERNETES.items() if name != "queue"} | {
    "labels": ["kueue.x-k8s.io/queue-name:ads"],
    "service_account": "msrec",
    "priority_class": "low",
    "head_cpu": 4,
    "head_mem_mib": 65536,
}
SRUN = """#!/bin/sh
printf '%s\\0' "$@"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working directory with a config, and fake commands in place of a Slurm of this machine."""
    (tmp_path / "conf.yaml").write_text("dataset: data\n")
    for name, text in (("srun", SRUN), ("sinfo", "#!/bin/sh\nexit 1\n"), ("words", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    return tmp_path


def request(job, scheduler, *options, args=()):
    """Request of `torchx run -s SCHEDULER --dryrun msrec.JOB -j 2x4`, as plain values."""
    if scheduler in LIBRARY:
        pytest.importorskip(LIBRARY[scheduler])
    cfg, defaults = SCHEDULERS[scheduler]
    words = ["-j", "2x4", *defaults, *options, "--", *JOBS[job], *args]
    with get_runner() as runner:
        made = runner.dryrun_component(f"msrec.{job}", words, scheduler, cfg).request
    if scheduler == "kubernetes":
        return made.resource
    return str(made) if scheduler == "slurm" else dataclasses.asdict(made)


def rayjob(folder, job, *words, **changes):
    """RayJob of `msrec launch convert` or `encode`, as plain values."""
    pytest.importorskip("kubernetes")
    (folder / "raw").mkdir()
    values = {"image": "registry/msrec:1", "resource": "msrec_a100x8", "max_retries": 3}
    values |= {
        "mounts": ["type=bind,src=/fsx,dst=/fsx"],
        "env": {"A": "$(HOME)"},
        "cfg": OF_KUBERAY,
    }
    profile = Profile(scheduler="kuberay", **(values | changes))
    raw, out = folder / "raw", folder / "app"
    config = load_config(folder / "conf.yaml", ["run_root=runs", "run_id=first", "device=cuda"])
    spec = convert_spec(raw, out, words) if job == "convert" else encode_spec(config)
    with get_runner() as runner:
        return _dry_run(
            runner, torchx_app(spec, Target("x", profile, "2x4")), profile
        ).request.resource


@pytest.mark.parametrize(("job", "scheduler"), [*PAIRS, *((job, "kuberay") for job in RAY_JOBS)])
def test_the_request_is_the_golden_one(folder, job, scheduler):
    made = rayjob(folder, job) if scheduler == "kuberay" else request(job, scheduler)
    text = made if scheduler == "slurm" else yaml.safe_dump(made, width=10**6)
    text = re.sub(rf"\b{job}-[a-z0-9]{{10,}}\b", f"{job}-ID", text)
    text = text.replace(sys.executable, "PYTHON").replace(str(folder), "FOLDER")
    golden = GOLDEN / f"{job}-{scheduler}.{'sh' if scheduler == 'slurm' else 'yaml'}"
    if "UPDATE_GOLDEN" in os.environ:
        golden.write_text(text)
    assert text == golden.read_text()


def test_every_golden_file_is_compared():
    names = {f"{job}-{scheduler}" for job, scheduler in PAIRS}
    names |= {f"{job}-kuberay" for job in RAY_JOBS}
    assert {file.stem for file in GOLDEN.iterdir()} <= names


@pytest.mark.parametrize("scheduler", ["slurm", "kubernetes", "aws_batch", "ray"])
def test_the_example_for_torchx_has_only_known_options(scheduler):
    if scheduler in LIBRARY:
        pytest.importorskip(LIBRARY[scheduler])
    example = ConfigParser()
    example.read(GOLDEN.parents[2] / "configs/torchxconfig")
    with get_runner() as runner:
        known = {name for name, _ in runner.scheduler_run_opts(scheduler)}
    assert set() < set(example[scheduler]) <= known


def lines(made, scheduler, environment):
    """The command lines that bash gets on the two nodes."""
    if scheduler == "local_cwd":
        return [node["args"][2] for node in next(iter(made["role_params"].values()))]
    if scheduler == "slurm":
        done = subprocess.run(
            ["bash", "-c", made.partition("#!/bin/bash")[2]],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        words = done.stdout.split("\0")
        return [words[i + 2] for i, word in enumerate(words) if word == "bash"]
    if scheduler == "kubernetes":
        pods = [task["template"]["spec"] for task in made["spec"]["tasks"]]
        return [as_kubernetes_reads(pod["containers"][0]["command"][2]) for pod in pods]
    if scheduler == "aws_batch":
        (nodes,) = made["job_def"]["nodeProperties"]["nodeRangeProperties"]
        return [nodes["container"]["command"][2]] * 2
    return [actor["command"][2] for actor in made["actors"]]


def as_kubernetes_reads(word):
    """Replaces $(NAME) by the value of a known variable, and $$ by one dollar."""
    variables = {"HOME": "a pod's home"}
    pattern = re.compile(r"\$\$|\$\(([^)]*)\)")
    return pattern.sub(lambda m: variables.get(m[1], m[0]) if m[1] else "$", word)


@pytest.mark.parametrize(("job", "scheduler"), PAIRS)
def test_every_argument_survives_bash_and_the_second_node_finds_the_first(folder, job, scheduler):
    given = 'llm.store=it\'s "a" \\ * ; & `id` $HOME $(id) $(HOME) $$ $$$$(X) ${replica_id}'
    # A script that prints its arguments takes the place of the interpreter.
    made = request(job, scheduler, "--python", str(folder / "words"), args=["run_id=x", given])
    environment = {"PATH": os.environ["PATH"], "HOME": "/home", "SLURM_JOB_ID": "7"}
    rank0 = {RANK0[scheduler].format(JOB=job.upper()): "first"}
    for node, line in enumerate(lines(made, scheduler, environment)):
        # These two do not set the variable on the first node.
        first = "localhost" if scheduler in ("kubernetes", "aws_batch") and node == 0 else "first"
        known = environment | ({} if first == "localhost" else rank0)
        done = subprocess.run(
            ["bash", "-c", line], env=known, capture_output=True, text=True, check=True
        )
        words = done.stdout.split("\0")[:-1]
        assert words[words.index("--module") + 1 :] == [
            *("msrec", job, *WORDS.get(job, [JOBS[job][0].partition("=")[2]]), "run_id=x", given)
        ]
        assert words[words.index("--rdzv-endpoint") + 1] == f"{first}:29500"


@pytest.mark.parametrize("job", RAY_JOBS)
def test_the_words_of_a_ray_jobs_command_survive_kubernetes_and_two_shells(folder, job):
    given = '--label=it\'s "a" \\ * ; & `id` $HOME $(id) $(HOME) $$ $$$$(X) ${app_id}'
    made = rayjob(folder, job, given, python=str(folder / "words"))
    # KubeRay writes the command behind `ray job submit --`, whose words Ray joins for a shell.
    submitter = as_kubernetes_reads(f"printf '%s\\0' {made['spec']['entrypoint']}")
    submitted = subprocess.check_output(["bash", "-c", submitter], text=True).split("\0")[:-1]
    words = subprocess.check_output(["sh", "-c", shlex.join(submitted)], text=True).split("\0")[:-1]
    at = ["--engine=ray", "--address=auto"]
    assert (
        words
        == {
            "convert": ["-m", "msrec", job, "tables", f"{folder}/raw", f"{folder}/app", *at, given],
            "encode": ["-m", "msrec", job, f"{folder}/runs/first/jobs/encode/submitted.yaml", *at],
        }[job]
    )


def templates(job):
    """Templates of the pods of a Volcano Job or RayJob."""
    if job["kind"] == "Job":
        return [task["template"] for task in job["spec"]["tasks"]]
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def refused(job):
    """Reason for which Kubernetes would refuse a Volcano Job or RayJob; None if none is known."""
    import jsonschema
    import kubernetes_validate

    file = {"Job": "volcano_job.yaml", "RayJob": "ray_job.yaml"}[job["kind"]]
    schema = yaml.safe_load(GOLDEN.with_name(file).read_text())
    try:
        jsonschema.validate(job, schema, jsonschema.Draft202012Validator)
        for template in templates(job):
            pod = {"apiVersion": "v1", "kind": "Pod", **template}
            kubernetes_validate.validate(pod, "1.34", strict=True)
            names = {volume["name"] for volume in pod["spec"]["volumes"]}
            for container in pod["spec"]["containers"]:
                for mount in container["volumeMounts"]:
                    assert mount["name"] in names, f"no volume {mount['name']}"
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        return error.message
    except AssertionError as error:
        return str(error)
    return None


@pytest.mark.parametrize("job", JOBS)
def test_kubernetes_would_accept_the_job(folder, job):
    pytest.importorskip("kubernetes_validate")
    assert refused(request(job, "kubernetes")) is None


@pytest.mark.parametrize("job", RAY_JOBS)
def test_kubernetes_would_accept_the_ray_job(folder, job):
    pytest.importorskip("kubernetes_validate")
    made = rayjob(folder, job)
    assert refused(made) is None
    assert refused(put(made, ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "2"))
    assert refused(put(made, ("spec", "ttlSecondsAfterFinish"), 2))


def put(job, place, value):
    """Copy of a job with another value in one place."""
    job = deepcopy(job)
    *inner, last = place
    part = job
    for key in inner:
        part = part[key]
    part[last] = value
    return job


TASK = ("spec", "tasks", 1)
POD = (*TASK, "template", "spec")
CONTAINER = (*POD, "containers", 0)
MUTANTS = {
    "a number as text": ((*TASK, "replicas"), "1"),
    "an unknown field of the job": (("spec", "minAvailabel"), 2),
    "an unknown field of a task": ((*TASK, "maxRetries"), 2),
    "no such action": ((*TASK, "policies"), [{"event": "PodFailed", "action": "Nope"}]),
    "a name with a capital": ((*TASK, "name"), "Train-1"),
    "an unknown field of the pod": ((*POD, "toleration"), []),
    "a toleration's effect misspelt": ((*POD, "tolerations", 0), {"efect": "NoSchedule"}),
    "a claim without its name": ((*POD, "volumes", 1, "persistentVolumeClaim"), {}),
    "a mount without a path": ((*CONTAINER, "volumeMounts", 1), {"name": "claim-0"}),
    "a mount of no volume": (
        (*CONTAINER, "volumeMounts", 1),
        {"name": "claim-7", "mountPath": "/data"},
    ),
    "a secret as text": ((*CONTAINER, "envFrom"), ["s3"]),
    "a port as text": ((*CONTAINER, "ports", 0, "containerPort"), "29500"),
}


@pytest.mark.parametrize(("place", "value"), MUTANTS.values(), ids=MUTANTS)
def test_the_check_of_a_kubernetes_job_finds_each_mistake(folder, place, value):
    pytest.importorskip("kubernetes_validate")
    assert refused(put(request("train", "kubernetes"), place, value)) is not None
