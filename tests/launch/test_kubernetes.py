"""Kubernetes through torchx: the spec of a pod, and the state of jobs from a fake API."""

import pytest
import torchx
import yaml
from fake_kubernetes import fake_kubernetes
from torchx.runner import get_runner
from torchx.specs import AppDef, AppState, Resource, Role
from torchx.specs.finder import ComponentValidationException

from msrec.launch.cluster.schedulers.kubernetes import MsrecKubernetesScheduler, create_scheduler
from msrec.launch.cluster.submit import cancel
from msrec.launch.cluster.submitted import Submitted

pytestmark = pytest.mark.slow

kubernetes = pytest.importorskip("kubernetes")


def app(**role):
    resource = Resource(cpu=2, gpu=0, memMB=1000, capabilities={})
    values = {"image": "registry/msrec:1", "num_replicas": 2, "resource": resource} | role
    return AppDef(name="train", roles=[Role(name="train", entrypoint="bash", **values)])


def pods(cfg, **role):
    """Specs of the pods of a job with these options."""
    info = create_scheduler("x").submit_dryrun(app(**role), {"queue": "ads"} | cfg)
    assert yaml.safe_load(str(info)) == info.request.resource
    return [task["template"]["spec"] for task in info.request.resource["spec"]["tasks"]]


def test_claims_are_volumes_of_every_pod_and_mounted_next_to_the_shared_memory():
    for pod in pods({"volumes": ["data:/data", "my.cache:/root/.cache"]}):
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert list(mounts) == ["/dev/shm", "/data", "/root/.cache"]
        claims = {v["name"]: v.get("persistentVolumeClaim") for v in pod["volumes"]}
        assert claims[mounts["/data"]] == {"claimName": "data"}
        assert claims[mounts["/root/.cache"]] == {"claimName": "my.cache"}


def test_secrets_come_whole_or_by_key_and_no_value_is_in_the_job():
    (pod, _) = pods({"secrets": ["s3"], "secret_env": ["HF_TOKEN:hf/token"]}, env={"A": "b"})
    container = pod["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    variables = {variable.pop("name"): variable for variable in container["env"]}
    assert variables["A"] == {"value": "b"}
    assert variables["HF_TOKEN"] == {"valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}


def test_nodes_are_chosen_by_label_in_addition_to_the_resource_and_by_taint():
    options = {
        "node_selector": ["cloud.google.com/gke-nodepool:h100"],
        "tolerations": ["nvidia.com/gpu:NoSchedule", "team:ads:NoExecute"],
    }
    itype = {"node.kubernetes.io/instance-type": "p5.48xlarge"}
    for pod in pods(options, resource=Resource(cpu=2, gpu=8, memMB=9, capabilities=itype)):
        assert pod["nodeSelector"] == itype | {"cloud.google.com/gke-nodepool": "h100"}
        assert pod["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "team", "operator": "Equal", "value": "ads", "effect": "NoExecute"},
        ]


def test_memory_is_asked_for_in_full_and_a_mib_is_a_mib():
    for pod in pods({}):
        resources = pod["containers"][0]["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"] == "1000Mi"


def test_without_options_a_pod_has_none_of_their_fields():
    for pod in pods({}):
        assert not {"tolerations", "imagePullSecrets"} & set(pod)
        assert "envFrom" not in pod["containers"][0]
        assert [volume["name"] for volume in pod["volumes"]] == ["dshm"]


def test_options_are_read_from_torchxs_command_line():
    options = create_scheduler("x").run_opts()
    cfg = options.cfg_from_str(
        "queue=ads,volumes=data:/data;cache:/c,tolerations=nvidia.com/gpu:NoSchedule"
    )
    assert cfg["volumes"] == ["data:/data", "cache:/c"]
    (pod, _) = pods(cfg)
    assert len(pod["volumes"]) == 3
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


MISTAKES = {
    "volumes": "data",
    "secrets": "a/b",
    "secret_env": "HF_TOKEN:hf",
    "image_pull_secrets": "",
    "node_selector": "pool",
    "tolerations": "nvidia.com/gpu:Nope",
}


@pytest.mark.parametrize(("option", "text"), MISTAKES.items())
def test_a_mistake_in_an_option_is_one_sentence(option, text):
    with pytest.raises(ComponentValidationException) as refused:
        pods({option: [text]})
    assert str(refused.value).startswith(f"each of the option {option} must be ")
    assert str(refused.value).endswith(f"; got {text!r}.")


def test_a_job_without_an_image_is_refused():
    with pytest.raises(ComponentValidationException, match="needs an image with msrec in it"):
        pods({}, image=torchx.IMAGE)


@pytest.fixture
def api():
    with fake_kubernetes() as server:
        yield server


@pytest.fixture
def scheduler(api):
    configuration = kubernetes.client.Configuration(host=api.url)
    return create_scheduler("x", client=kubernetes.client.ApiClient(configuration))


def submitted(scheduler, queue="ads"):
    return scheduler.submit(app(), {"queue": queue, "namespace": "rec"})


PHASES = {
    "Pending": AppState.PENDING,
    "Running": AppState.RUNNING,
    "Restarting": AppState.RUNNING,
    "Completing": AppState.RUNNING,
    "Completed": AppState.SUCCEEDED,
    "Failed": AppState.FAILED,
    "Aborted": AppState.CANCELLED,
    "OfAVolcanoToCome": AppState.UNKNOWN,
}


def test_a_job_is_submitted_described_and_cancelled(api, scheduler):
    app_id = submitted(scheduler)
    name = app_id.removeprefix("rec:")
    assert len(api.jobs[name]["spec"]["tasks"]) == 2
    assert scheduler.describe(app_id).state == AppState.UNKNOWN  # Volcano has not seen it
    for phase, state in PHASES.items():
        counts = {"train-0": {"phase": {"Running": 1}}, "train-1": {"phase": {"Pending": 1}}}
        api.statuses[name] = {"state": {"phase": phase, "message": "why"}}
        api.statuses[name]["taskStatusCount"] = counts
        response = scheduler.describe(app_id)
        assert (response.state, response.msg) == (state, "why")
        (role,) = response.roles_statuses
        pods = {replica.id: replica.state for replica in role.replicas}
        assert pods == {0: AppState.RUNNING, 1: AppState.PENDING}
    scheduler.cancel(app_id)
    assert api.jobs == {}
    assert scheduler.describe(app_id) is None


def test_every_line_of_a_log_has_its_end(api, scheduler):
    app_id = submitted(scheduler)
    api.logs[f"{app_id.removeprefix('rec:')}-train-1-0"] = "step 1\nstep 2\n"
    for tail in (False, True):
        lines = list(scheduler.log_iter(app_id, "train", 1, should_tail=tail))
        assert lines == ["step 1\n", "step 2\n"]


def test_a_refusal_has_the_message_of_kubernetes(api, scheduler):
    with pytest.raises(ValueError, match=r"^Kubernetes refuses it: unable to find job queue: b\.$"):
        submitted(scheduler, queue="b")
    with pytest.raises(ValueError, match="Kubernetes refuses it: x-train-0-0 not found"):
        list(scheduler.log_iter("rec:x", "train"))


def test_an_api_that_does_not_answer_is_one_sentence(api, scheduler):
    api.server_close()
    with pytest.raises(ConnectionError, match=r"API at 127.0.0.1:\d+ must answer; it does not"):
        scheduler.describe("rec:x")


def test_no_kubeconfig_is_one_sentence(tmp_path, monkeypatch):
    location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(location, str(tmp_path / "none"))
    with pytest.raises(
        ValueError, match=r"needs \$KUBECONFIG or ~/.kube/config; .*No configuration found\.$"
    ):
        create_scheduler("x").describe("rec:x")


def test_cancelling_a_job_that_kubernetes_does_not_know_says_so(scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(MsrecKubernetesScheduler, "_api_client", lambda self: scheduler._client)
    values = {"job": "train", "profile": "gke", "scheduler": "kubernetes", "time": 0.0, "pid": 1}
    values |= {"handle": "kubernetes://torchx/rec:train-x", "nodes_and_ranks": "2x8"}
    (tmp_path / "submitted.json").write_text(Submitted(**values).model_dump_json())
    with pytest.raises(ValueError, match=r"kubernetes must know kubernetes://torchx/rec:train-x"):
        cancel(tmp_path)


def test_torchx_uses_our_scheduler(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with get_runner() as runner:
        assert isinstance(runner._scheduler("kubernetes"), MsrecKubernetesScheduler)
