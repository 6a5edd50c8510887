"""KubeRay through torchx: a Ray cluster and its command, and the state of jobs from a fake API."""

import io
import tomllib
from pathlib import Path

import pytest
import torchx
from fake_kubernetes import KUBERAY, VOLCANO, fake_kubernetes
from rich.console import Console
from torchx.runner import get_runner
from torchx.specs.finder import ComponentValidationException
from typer.testing import CliRunner

from msrec.launch.cluster.job_specs import JobSpec, convert_spec, encode_spec, train_spec
from msrec.launch.cluster.pipeline import run_pipeline
from msrec.launch.cluster.profiles import Profile, Target
from msrec.launch.cluster.schedulers.kubernetes import MsrecKubernetesScheduler
from msrec.launch.cluster.status import log_text
from msrec.launch.cluster.submit import cancel, submit
from msrec.launch.cluster.submitted import read_submitted
from msrec.launch.config.run_config import load_config
from msrec.tools.cli.main import app

pytestmark = pytest.mark.slow

kubernetes = pytest.importorskip("kubernetes")


@pytest.fixture
def api(monkeypatch):
    """A fake API, which the scheduler asks in place of the one of a kubeconfig."""
    with fake_kubernetes() as server:
        client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=server.url))
        monkeypatch.setattr(MsrecKubernetesScheduler, "_api_client", lambda self: client)
        yield server


@pytest.fixture
def spec(tmp_path):
    """A conversion of tables in `raw` to the dataset `app`."""
    (tmp_path / "raw").mkdir()
    return convert_spec(tmp_path / "raw", tmp_path / "app", ["--split=time"])


def target(j="4x16", **values):
    values = {"image": "registry/msrec:1", "cpu": 16, "cfg": {"namespace": "rec"}} | values
    return Target("gke", Profile(scheduler="kuberay", **values), j)


def submitted(api, spec, **values):
    """Submits a job; returns its name and its RayJob."""
    assert submit(spec, target(**values), Console(file=io.StringIO())) == 0
    name = read_submitted(spec.folder).handle.rpartition(":")[2]
    return name, api.jobs[name]


def msrec(*words):
    return CliRunner().invoke(app, ["launch", *map(str, words)])


def test_workers_are_nodes_and_the_head_runs_the_command_alone(api, spec):
    _, job = submitted(api, spec, resource="msrec_h100x8", max_retries=2)
    assert job["spec"]["backoffLimit"] == 2
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert [workers[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [4, 4, 4]
    head = cluster["headGroupSpec"]
    assert workers["rayStartParams"] == {"num-cpus": "16"}  # tasks at a time
    assert head["rayStartParams"] == {"num-cpus": "0"}  # no task
    pods = [group["template"]["spec"] for group in (head, workers)]
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods]
    assert [limit["cpu"] for limit in limits] == ["192000m", "192000m"]
    assert limits[0]["memory"] == limits[1]["memory"]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, "8"]
    assert [bool(pod["nodeSelector"]) for pod in pods] == [False, True]  # the type of a GPU node
    assert not any("command" in pod["containers"][0] for pod in pods)  # KubeRay writes it


def test_the_head_may_have_another_size(api, spec):
    cfg = {"namespace": "rec", "head_cpu": 2, "head_mem_mib": 4096, "ttl_s": 5}
    _, job = submitted(api, spec, cfg=cfg)
    (container,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "2000m", "memory": "4096Mi"}
    assert job["spec"]["ttlSecondsAfterFinished"] == 5


def test_the_version_of_ray_is_the_oldest_that_the_extra_takes(api, spec):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (extra,) = project["project"]["optional-dependencies"]["ray"]
    _, job = submitted(api, spec)
    version = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert extra.partition(">=")[2].partition(",")[0] == version.removesuffix(".0")


STATES = {
    ("", ""): ("waits", "pending"),
    ("Initializing", ""): ("waits", "pending"),
    ("Suspended", ""): ("waits", "pending"),
    ("Retrying", ""): ("waits", "pending"),
    ("Running", ""): ("waits", "pending"),
    ("Running", "PENDING"): ("waits", "pending"),
    ("Running", "RUNNING"): ("runs", "running"),
    ("Running", "FAILED"): ("runs", "running"),  # until KubeRay has counted the retries
    ("Running", "SUCCEEDED"): ("runs", "running"),
    ("Complete", "SUCCEEDED"): ("done", "succeeded"),
    ("Complete", "STOPPED"): ("failed", "cancelled"),
    ("Failed", "FAILED"): ("failed", "failed"),
    ("Failed", ""): ("failed", "failed"),
    ("ValidationFailed", ""): ("failed", "failed"),
    ("OfAKubeRayToCome", ""): ("forgotten", "unknown"),
}


def test_a_job_has_the_status_that_kuberay_and_ray_say(api, spec):
    name, _ = submitted(api, spec)
    for (deployment, job), (word, state) in STATES.items():
        api.statuses[name] = {"jobDeploymentStatus": deployment, "jobStatus": job}
        shown = msrec("status", spec.folder)
        lines = shown.output.splitlines()
        assert lines[0] == f"{spec.folder}: {word}"
        assert lines[1] == f"convert on gke, 4x16: kuberay://torchx/rec:{name} {state}"
        assert shown.exit_code == (word in ("failed", "forgotten"))


def test_the_reason_of_a_failure_is_shown_and_a_message_of_a_running_job_is_not(api, spec):
    name, _ = submitted(api, spec)
    status = {"jobDeploymentStatus": "Failed", "message": "\n".join(map(str, range(100)))}
    api.statuses[name] = status
    lines = msrec("status", spec.folder).output.splitlines()
    assert lines[2:-1] == ["kuberay reports:", *(f"  {number}" for number in range(88, 100))]
    assert lines[-1] == "The job failed."
    api.statuses[name] = status | {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    assert len(msrec("status", spec.folder).output.splitlines()) == 2


def pod(name, job, at, phase="Running"):
    """A pod that submits a job, with a container of the cluster's mesh before its own."""
    containers = [{"name": "mesh"}, {"name": "ray-job-submitter"}]
    labels, start = {"job-name": job}, f"2026-01-01T00:00:0{at}Z"
    return {
        "metadata": {"name": name, "labels": labels, "creationTimestamp": start},
        "spec": {"containers": containers},
        "status": {"phase": phase},
    }


def test_the_log_is_the_output_of_the_command_in_its_last_attempt(api, spec):
    name, _ = submitted(api, spec)
    with pytest.raises(ValueError, match=f"^{name} must have begun to have an output; it has not"):
        log_text(spec.folder, 0, "stderr")
    api.pods = [
        pod("second", name, at=2),
        pod("first", name, at=1, phase="Failed"),
        pod("other", "convert-x", at=3),
        pod("third", name, at=4, phase="Pending"),
    ]
    api.logs = {"first": "old\n", "second": "new 1\nnew 2\n", "other": "of another job\n"}
    assert msrec("logs", spec.folder).output == "new 1\nnew 2\n"
    with get_runner() as runner:
        handle = read_submitted(spec.folder).handle
        assert list(runner.log_lines(handle, "convert", should_tail=True)) == ["new 1\n", "new 2\n"]
        assert list(runner.log_lines(handle, "convert", regex="2")) == ["new 2\n"]
    with pytest.raises(ValueError, match="has one output, that of rank 0; got rank 1"):
        log_text(spec.folder, 1, "stderr")


def test_a_job_runs_once_and_after_its_cancellation_it_is_forgotten(api, spec):
    name, _ = submitted(api, spec)
    with pytest.raises(ValueError, match=f"must have one job at a time; .*{name} is pending"):
        submitted(api, spec)
    assert cancel(spec.folder) == f"cancelled kuberay://torchx/rec:{name}"
    assert api.jobs == {}
    assert f"{spec.folder}: forgotten" in msrec("status", spec.folder).output
    with pytest.raises(ValueError, match=f"must know .*{name} to print its output; it does not"):
        log_text(spec.folder, 0, "stderr")
    with pytest.raises(ValueError, match="must know .* to cancel it; it does not"):
        cancel(spec.folder)
    assert submitted(api, spec)[0] != name


@pytest.mark.parametrize(
    ("scheduler", "kind", "sentence"),
    [
        ("kuberay", KUBERAY, r"KubeRay, .*know ray.io/v1. Install KubeRay \(https://"),
        ("kubernetes", VOLCANO, r"Volcano, .*know batch.volcano.sh/v1alpha1. Install Volcano \("),
    ],
)
def test_a_cluster_without_the_operator_is_one_sentence(api, spec, scheduler, kind, sentence):
    api.installed.remove(kind)
    cfg = {"namespace": "rec"} | ({"queue": "ads"} if scheduler == "kubernetes" else {})
    profile = Profile(scheduler=scheduler, image="registry/msrec:1", cfg=cfg)
    with pytest.raises(ValueError, match=f"the cluster must have {sentence}"):
        submit(spec, Target("gke", profile, "1x1"), Console())
    assert read_submitted(spec.folder) is None


def test_jobs_of_ranks_are_refused_and_a_pipeline_before_its_first_stage(api, spec, tmp_path):
    config = load_config(None, [f"dataset={tmp_path}/app", f"run_root={tmp_path}"])
    with pytest.raises(ValueError, match="runs ranks for train; got gke of kuberay, which is for"):
        submit(train_spec(config), target(), Console())
    with pytest.raises(ValueError, match="runs ranks for train"):
        run_pipeline(config, target(), Console(), spec)
    assert api.jobs == {}


@pytest.mark.parametrize(("device", "gpu"), [("auto", 8), ("cuda", 0)])
def test_a_device_that_ray_would_not_give_is_refused(api, tmp_path, device, gpu):
    paths = [f"dataset={tmp_path}/app", f"run_root={tmp_path}"]
    config = load_config(None, [*paths, f"device={device}"])
    with pytest.raises(ValueError, match=f"got device={device} and {gpu} GPUs per node"):
        submit(encode_spec(config), target(gpu=gpu), Console())
    other = config.model_copy(update={"device": "cpu" if gpu == 0 else "cuda"})
    assert submit(encode_spec(other), target(gpu=gpu), Console(file=io.StringIO())) == 0


PROFILES = {
    "a key for ranks": ({"max_restarts": 1, "port": 4000}, "max_restarts, port must be left out"),
    "a retry of one node": ({"retry_policy": "REPLICA"}, "got kuberay, which ignores it"),
}


@pytest.mark.parametrize(("values", "sentence"), PROFILES.values(), ids=PROFILES)
def test_a_key_of_a_profile_that_does_not_fit_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        target(**values)


REQUESTS = {
    "a queue of Volcano": ({"cfg": {"queue": "ads"}}, "options of kuberay; got 'queue'"),
    "elastic": ({"j": "1:4x16"}, "-j must be nodes x workers, .*got 1:4x16"),
    "no image": ({"image": torchx.IMAGE}, "KubeRay needs an image with msrec in it"),
    "a label": ({"cfg": {"labels": ["queue"]}}, "labels must be LABEL:VALUE; got 'queue'"),
}


@pytest.mark.parametrize(("values", "sentence"), REQUESTS.values(), ids=REQUESTS)
def test_an_option_that_does_not_fit_is_refused(spec, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        submit(spec, target(**values), Console(), dry_run=True)


def test_torchx_alone_is_told_which_commands_make_ray_jobs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with get_runner() as runner:
        words = ["--image", "registry/msrec:1", "--", "raw=a", "out=b"]
        with pytest.raises(ComponentValidationException, match="of `msrec launch convert` and"):
            runner.dryrun_component("msrec.convert", words, "kuberay", {})
        with pytest.raises(ValueError, match="`kubectl get rayjobs` does"):
            runner._scheduler("kuberay").list()


def test_an_encoding_has_the_same_cluster_and_another_command(api, spec):
    """Also of a command that is not a conversion, only the command differs."""
    other = JobSpec("encode", ("c.yaml",), spec.folder.with_name("e"), ray_args=("c.yaml", "--x"))
    (_, first), (_, second) = submitted(api, spec), submitted(api, other)
    assert second["spec"].pop("entrypoint") == "python -m msrec encode c.yaml --x"
    first["spec"].pop("entrypoint")
    for job in (first, second):
        cluster = job["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert [variable["name"] for variable in container.pop("env")] == ["TORCHX_JOB_ID"]
    assert first["spec"] == second["spec"]
