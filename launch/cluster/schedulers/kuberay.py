"""Scheduler for KubeRay: a job is a RayJob, which is a Ray cluster and the command that uses it."""

import shlex
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, filter_regex
from torchx.schedulers.ids import make_unique
from torchx.schedulers.kubernetes_scheduler import (
    KubernetesJob,
    KubernetesOpts,
    role_to_pod,
    sanitize_for_serialization,
)
from torchx.specs import AppDef, AppDryRunInfo, AppState, Resource, Role, macros, runopts
from torchx.specs.finder import ComponentValidationException

from msrec.launch.cluster.schedulers.kubernetes import (
    LABEL,
    OPTIONS,
    MsrecKubernetesScheduler,
    Operator,
    add_options,
    escaped,
    refusals_as_sentences,
)
from msrec.launch.cluster.schedulers.options import (
    WORKERS_PER_NODE,
    ListOption,
    ListOptions,
    Parts,
    require_image,
)
from msrec.launch.cluster.schedulers.responses import app_response

KUBERAY = Operator("KubeRay", "https://github.com/ray-project/kuberay", "ray.io", "v1", "rayjobs")
RAY_OPTIONS = ListOptions(
    OPTIONS,
    labels=ListOption(
        "LABEL:VALUE",
        f"{LABEL}:{LABEL}",
        "labels of the RayJob, such as kueue.x-k8s.io/queue-name:ads",
    ),
)
RAY_VERSION = "2.60.0"
"""Oldest version of Ray that msrec takes. KubeRay makes a token for versions from 2.52 on, without
which everybody in the network of the cluster could run code on it."""
SUBMITTER = "ray-job-submitter"
"""KubeRay's container that submits the command to the Ray cluster and prints its output."""
JOB_STATES = {
    "SUCCEEDED": AppState.SUCCEEDED,
    "FAILED": AppState.FAILED,
    "STOPPED": AppState.CANCELLED,
}
"""Ray's state of a command that has ended."""
DEPLOYMENT_STATES = {
    **dict.fromkeys(("", "Initializing", "Waiting", "Retrying"), AppState.PENDING),
    **dict.fromkeys(("Suspending", "Suspended"), AppState.PENDING),  # by Kueue, until it has room
    **dict.fromkeys(("Failed", "ValidationFailed"), AppState.FAILED),
}
"""KubeRay's state of a job, without `Running` and `Complete`, which need Ray's too."""


class KubeRayScheduler(MsrecKubernetesScheduler):
    """Scheduler for KubeRay, whose jobs are the commands that use a Ray cluster.

    It takes the apps of ray_role.py. Pods have the options of the scheduler for Volcano, except its
    queue.
    """

    operator = KUBERAY

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Returns the state of a job; None if Kubernetes does not know it."""
        status = self._status(app_id)
        if status is None:
            return None
        state = _app_state(status)
        command = ("command-0", state, "")  # `torchx log` asks for a node
        return app_response(app_id, state, status.get("message", ""), [command])

    def list(self) -> list[ListAppResponse]:
        """Refuses to list jobs.

        Raises:
            ValueError: always; names the command that lists them.
        """
        raise ValueError("kuberay does not list jobs here; `kubectl get rayjobs` does.")

    def schedule(self, dryrun_info: AppDryRunInfo[KubernetesJob]) -> str:
        """Submits a job.

        Raises:
            ValueError: Kubernetes refuses it, or has no KubeRay.
        """
        namespace = (dryrun_info._cfg or {}).get("namespace") or "default"
        with refusals_as_sentences(self.operator):
            made = self._custom_objects_api().create_namespaced_custom_object(
                **self.operator.resource, namespace=namespace, body=dryrun_info.request.resource
            )
        return f"{namespace}:{made['metadata']['name']}"

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: object = None,
    ) -> Iterable[str]:
        """Yields the lines that the command has printed, in its last attempt.

        Raises:
            ValueError: `k` is not 0, or there is no output yet.
        """
        from kubernetes import client, watch

        if k > 0:
            raise ValueError(f"a job of kuberay has one output, that of rank 0; got rank {k}.")
        namespace, _, name = app_id.partition(":")
        api = client.CoreV1Api(self._api_client())
        with refusals_as_sentences(self.operator):
            pods = api.list_namespaced_pod(namespace, label_selector=f"job-name={name}").items
            started = [pod for pod in pods if pod.status.phase != "Pending"]
            if not started:
                raise ValueError(
                    f"{name} must have begun to have an output; it has not. KubeRay begins when "
                    f"all pods of the cluster run: kubectl get pods --namespace {namespace}"
                )
            pod = max(started, key=lambda pod: pod.metadata.creation_timestamp).metadata.name
            source = {"name": pod, "namespace": namespace, "container": SUBMITTER}
            if since is not None:
                source["since_seconds"] = int((datetime.now() - since).total_seconds())
            if should_tail:
                lines = watch.Watch().stream(api.read_namespaced_pod_log, **source)
            else:
                lines = api.read_namespaced_pod_log(**source).splitlines()
            for line in filter_regex(regex, lines) if regex else lines:
                yield line.rstrip("\n") + "\n"

    def _run_opts(self) -> runopts:
        options = runopts()
        options.add("namespace", type_=str, default="default", help="namespace of the job")
        options.add("service_account", type_=str, help="service account of the Ray cluster's pods")
        options.add("priority_class", type_=str, help="priority class of the Ray cluster's pods")
        options.add("head_cpu", type_=int, help="cores of the head, default: as a node")
        options.add("head_mem_mib", type_=int, help="memory of the head in MiB, default: as a node")
        options.add(
            "ttl_s", type_=int, default=60, help="seconds that the Ray cluster outlives the command"
        )
        return RAY_OPTIONS.add_to(options)

    def _submit_dryrun(self, app: AppDef, cfg: KubernetesOpts) -> AppDryRunInfo[KubernetesJob]:
        (role,) = app.roles
        if WORKERS_PER_NODE not in role.metadata:
            raise ComponentValidationException(
                "kuberay runs the jobs of `msrec launch convert` and `msrec launch encode`; "
                f"got {role.name} of torchx. Use one of these commands."
            )
        require_image(app, "KubeRay")
        name = make_unique(app.name)
        role = macros.Values(img_root="", app_id=name, replica_id="0", rank0_env="").apply(role)
        values = dict(cfg)
        parts = RAY_OPTIONS.split(values)
        head = Resource(
            cpu=values["head_cpu"] or role.resource.cpu,
            gpu=0,
            memMB=values["head_mem_mib"] or role.resource.memMB,
        )
        job = {
            "apiVersion": f"{KUBERAY.group}/{KUBERAY.version}",
            "kind": "RayJob",
            "metadata": {
                "name": name,
                "labels": {label: value for label, value in parts["labels"]},
            },
            "spec": {
                # KubeRay writes it into the arguments of a container, hence the escaping.
                "entrypoint": escaped(shlex.join([role.entrypoint, *role.args])),
                "backoffLimit": role.max_retries,
                "shutdownAfterJobFinishes": True,
                "ttlSecondsAfterFinished": values["ttl_s"],
                "rayClusterSpec": {
                    "rayVersion": RAY_VERSION,
                    "authOptions": {"mode": "token"},
                    "headGroupSpec": {
                        # No task runs beside the command, whose memory grows with the data.
                        "rayStartParams": {"num-cpus": "0"},
                        "template": _pod("head", role, head, values, parts),
                    },
                    "workerGroupSpecs": [
                        {
                            "groupName": "workers",
                            "replicas": role.num_replicas,
                            "minReplicas": role.num_replicas,
                            "maxReplicas": role.num_replicas,
                            "rayStartParams": {"num-cpus": str(role.metadata[WORKERS_PER_NODE])},
                            "template": _pod("worker", role, role.resource, values, parts),
                        }
                    ],
                },
            },
        }
        return AppDryRunInfo(KubernetesJob(images_to_push={}, resource=job), repr)


def create_scheduler(session_name: str, **kwargs: Any) -> KubeRayScheduler:
    """Entry point for torchx."""
    scheduler = KubeRayScheduler(session_name, client=kwargs.get("client"))
    scheduler.backend = "kuberay"
    return scheduler


def _pod(
    name: str, role: Role, resource: Resource, cfg: dict[str, Any], parts: Parts
) -> dict[str, Any]:
    """Returns the template of a pod whose command KubeRay writes: `ray start`."""
    made = role_to_pod(name, replace(role, resource=resource), cfg["service_account"])
    pod: dict[str, Any] = sanitize_for_serialization(made)
    add_options(pod["spec"], resource, parts)
    del pod["spec"]["containers"][0]["command"], pod["spec"]["restartPolicy"]
    if cfg["priority_class"]:
        pod["spec"]["priorityClassName"] = cfg["priority_class"]
    return pod


def _app_state(status: dict[str, Any]) -> AppState:
    """Returns the state of a RayJob; while it is `Running`, a failed command may be retried."""
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment == "Running":
        return AppState.PENDING if job in ("", "PENDING") else AppState.RUNNING
    if deployment == "Complete":
        return JOB_STATES.get(job, AppState.UNKNOWN)
    return DEPLOYMENT_STATES.get(deployment, AppState.UNKNOWN)
