"""Jobs of Volcano on a real Kubernetes API server, with pods that its scheduler binds to nodes.

The folder $KUBEBUILDER_ASSETS must have etcd, kube-apiserver and kube-scheduler. Volcano itself
does not run: its Job is a resource with the schema of volcano_job.yaml, and the test makes the
pods.
"""

from pathlib import Path

import pytest
import yaml
from control_plane import IS_THERE, PROGRAMS, control_plane, until
from torchx.runner import get_runner
from torchx.specs import AppState

from msrec.launch.cluster.schedulers.kubernetes import VOLCANO, create_scheduler

kubernetes = pytest.importorskip("kubernetes")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IS_THERE, reason=f"$KUBEBUILDER_ASSETS must have {', '.join(PROGRAMS)}"),
]
SCHEMA = Path(__file__).with_name("volcano_job.yaml")
# What is left for pods on an instance of 192 CPUs and 2 TiB, by the formulas of EKS and GKE.
P5 = {"cpu": "191450m", "memory": "2001Gi", "pods": "110"}
P5 |= {"nvidia.com/gpu": "8", "vpc.amazonaws.com/efa": "32"}
AGENT = {"cpu": "250m", "memory": "500Mi"}


def structural(schema, definitions):
    """The schema in the subset that Kubernetes takes; properties that it does not name are cut."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
    if "const" in schema:
        return {"type": "string", "enum": [schema["const"]]}
    found = {key: schema[key] for key in schema.keys() & {"type", "required", "enum", "pattern"}}
    found |= {key: schema[key] for key in schema.keys() & {"maxLength", "minimum", "minItems"}}
    if "enum" in found:
        found["type"] = "string"
    if "items" in schema:
        found["items"] = structural(schema["items"], definitions)
    if "properties" in schema:
        parts = schema["properties"].items()
        found["properties"] = {name: structural(part, definitions) for name, part in parts}
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = structural(schema["additionalProperties"], definitions)
    elif found["type"] == "object":
        found["x-kubernetes-preserve-unknown-fields"] = True
    return found


def definition_of_job():
    schema = yaml.safe_load(SCHEMA.read_text())
    spec = structural(schema["properties"]["spec"], schema["$defs"])
    status = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {
            "openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "jobs.batch.volcano.sh"},
        "spec": {
            "group": "batch.volcano.sh",
            "scope": "Namespaced",
            "names": {"plural": "jobs", "singular": "job", "kind": "Job"},
            "versions": [version],
        },
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a new control plane; torchx takes the same configuration."""
    location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    with (
        control_plane(tmp_path_factory.mktemp("kubernetes")) as file,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(location, str(file))
        yield kubernetes.config.new_client_from_config(str(file))


@pytest.fixture(scope="module")
def core(client):
    """The core API of a server that knows jobs of Volcano and two p5.48xlarge."""
    definitions = kubernetes.client.ApiextensionsV1Api(client)
    with pytest.raises(ValueError, match="the cluster must have Volcano, whose jobs msrec submits"):
        submit(client, dryrun("--image", "registry/msrec:1"))
    definitions.create_custom_resource_definition(definition_of_job())
    jobs = kubernetes.client.CustomObjectsApi(client)
    until(lambda: knows_jobs(jobs))
    core = kubernetes.client.CoreV1Api(client)
    label = {"node.kubernetes.io/instance-type": "p5.48xlarge"}
    for name in ("a", "b"):
        core.create_node({"metadata": {"name": name, "labels": label}})
        ready = {"type": "Ready", "status": "True"}
        status = {"capacity": P5, "allocatable": P5, "conditions": [ready]}
        core.patch_node_status(name, {"status": status})
        core.patch_node(name, {"spec": {"taints": []}})  # the server taints new nodes
    return core


def knows_jobs(jobs):
    try:
        return bool(jobs.list_namespaced_custom_object(**VOLCANO.resource, namespace="default"))
    except kubernetes.client.rest.ApiException:  # the definition takes a moment
        return False


def dryrun(*options, **cfg):
    cfg = {"queue": "ads", "namespace": "default"} | cfg
    with get_runner() as runner:
        arguments = [*options, "--", "config=conf.yaml"]
        return runner.dryrun_component("msrec.train", arguments, "kubernetes", cfg)


def submit(client, info):
    """The id of a submitted job, and the job that the server keeps."""
    scheduler = create_scheduler("x", client=client)

    app_id = scheduler.schedule(info)
    jobs = kubernetes.client.CustomObjectsApi(client)
    name = app_id.removeprefix("default:")
    return app_id, jobs.get_namespaced_custom_object(
        **VOLCANO.resource, namespace="default", name=name
    )


def bound(core, name, template):
    """The condition of a pod that is made from a template, once the scheduler has judged it."""
    pod = {"metadata": template["metadata"] | {"name": name}, "spec": template["spec"]}
    core.create_namespaced_pod("default", pod)

    def judged():
        conditions = core.read_namespaced_pod(name, "default").status.conditions or []
        return next((c for c in conditions if c.type == "PodScheduled"), None)

    return until(judged)


OPTIONS = {
    "volumes": ["data:/data"],
    "secrets": ["s3"],
    "secret_env": ["HF_TOKEN:hugging-face/token"],
    "image_pull_secrets": ["registry"],
    "tolerations": ["nvidia.com/gpu:NoSchedule", "team:ads:NoExecute"],
}


@pytest.mark.parametrize("retries", ["APPLICATION", "REPLICA"])
def test_a_job_is_kept_whole_and_described_and_cancelled(client, core, retries):
    image = ["--image", "registry/msrec:1", "-h", "msrec_h100x8", "-j", "2x8"]
    retry = ["--max_retries", "3", "--retry_policy", retries]
    info = dryrun(*image, *retry, **OPTIONS)
    app_id, kept = submit(client, info)
    assert kept["spec"] == info.request.resource["spec"]  # nothing was unknown, and cut
    scheduler = create_scheduler("x", client=client)
    assert scheduler.describe(app_id).state == AppState.UNKNOWN
    jobs = kubernetes.client.CustomObjectsApi(client)
    where = {**VOLCANO.resource, "namespace": "default", "name": app_id.removeprefix("default:")}
    status = {"state": {"phase": "Running"}, "taskStatusCount": {}}
    jobs.patch_namespaced_custom_object_status(**where, body={"status": status})
    assert scheduler.describe(app_id).state == AppState.RUNNING
    scheduler.cancel(app_id)
    until(lambda: scheduler.describe(app_id) is None)


def test_the_two_pods_of_a_job_fill_two_nodes_beside_their_agents(client, core):
    for node in ("a", "b"):
        agent = {"name": "agent", "image": "x", "resources": {"requests": AGENT}}
        pod = {"metadata": {"name": f"agent-{node}"}, "spec": {"containers": [agent]}}
        core.create_namespaced_pod("default", pod | {"spec": pod["spec"] | {"nodeName": node}})
    info = dryrun("--image", "registry/msrec:1", "-h", "msrec_h100x8", "-j", "2x8")
    _, job = submit(client, info)
    first, second = (task["template"] for task in job["spec"]["tasks"])
    assert bound(core, "first", first).status == "True"
    assert bound(core, "second", second).status == "True"
    pods = [core.read_namespaced_pod(name, "default") for name in ("first", "second")]
    assert {pod.spec.node_name for pod in pods} == {"a", "b"}
    # Kubernetes requests network cards as far as they are limited.
    requests = pods[0].spec.containers[0].resources.requests
    assert (requests["nvidia.com/gpu"], requests["vpc.amazonaws.com/efa"]) == ("8", "32")
    third = bound(core, "third", second)
    assert third.status == "False"
    assert "Insufficient nvidia.com/gpu" in third.message


def test_a_pod_for_another_instance_type_finds_no_node(client, core):
    _, job = submit(client, dryrun("--image", "registry/msrec:1", "-h", "msrec_a100x8"))
    (task,) = job["spec"]["tasks"]
    refused = bound(core, "other", task["template"])
    assert refused.status == "False"
    assert "node(s) didn't match" in refused.message
