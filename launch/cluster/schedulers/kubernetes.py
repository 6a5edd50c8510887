"""Kubernetes scheduler (Volcano) with volumes, secrets and tolerations."""

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.kubernetes_scheduler import (
    JOB_STATE,
    TASK_STATE,
    KubernetesJob,
    KubernetesOpts,
    KubernetesScheduler,
    sanitize_for_serialization,
)
from torchx.specs import AppDef, AppDryRunInfo, AppState, Resource, RetryPolicy, runopts
from urllib3.exceptions import MaxRetryError

from msrec.launch.cluster.schedulers.options import (
    ListOption,
    ListOptions,
    Parts,
    require_image,
)
from msrec.launch.cluster.schedulers.responses import app_response

NAME = r"([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)"
LABEL = r"([A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?)"
VARIABLE, KEY = "([A-Za-z_][A-Za-z0-9_]*)", "([-._A-Za-z0-9]+)"
EFFECT = "(NoSchedule|PreferNoSchedule|NoExecute)"
OPTIONS = ListOptions(
    volumes=ListOption("CLAIM:/PATH", f"{NAME}:(/.+)", "persistent volume claims to mount"),
    secrets=ListOption("SECRET", NAME, "secrets whose keys become environment variables"),
    secret_env=ListOption(
        "VARIABLE:SECRET/KEY",
        f"{VARIABLE}:{NAME}/{KEY}",
        "environment variables that are one key of a secret",
    ),
    image_pull_secrets=ListOption("SECRET", NAME, "secrets of the image's registry"),
    node_selector=ListOption("LABEL:VALUE", f"{LABEL}:{LABEL}", "labels that a node must have"),
    tolerations=ListOption(
        "TAINT[:VALUE]:EFFECT", f"{LABEL}(?::{LABEL})?:{EFFECT}", "taints of nodes to accept"
    ),
)
CPU_SHARE = 0.96
"""Share of a resource's CPUs that a pod requests; its limit is all of them. The rest is for the
node: EKS, GKE and AKS keep 60 + 10 + 5 + 5 millicores of the first four CPUs and 0.25 % of the
others, other clouds more, and agents such as kube-proxy request some too. A pod that requests all
CPUs of an instance fits on no node."""
LOST_POD = ("PodEvicted", "PodFailed")
RESTART_POD = "RestartPod"
"""Volcano's action for REPLICA, since Volcano 1.11. torchx sets none, and Volcano then ignores lost
pods."""
JOB_PHASES = JOB_STATE | {"Completing": AppState.RUNNING}
"""torchx does not know the phase between the end of the last pod and the end of the job."""


class Operator(NamedTuple):
    """Operator of the cluster, and the custom resource that is a job for it."""

    name: str
    site: str
    group: str
    version: str
    plural: str

    @property
    def resource(self) -> dict[str, str]:
        """Arguments of the client that name the custom resource."""
        return {"group": self.group, "version": self.version, "plural": self.plural}


VOLCANO = Operator("Volcano", "https://volcano.sh", "batch.volcano.sh", "v1alpha1", "jobs")


class MsrecKubernetesScheduler(KubernetesScheduler):  # type: ignore[misc]  # torchx is untyped
    """Kubernetes scheduler with volumes, secrets and tolerations.

    torchx's own has none of these options, and requests 1 GiB of memory and 0.1 CPUs less than the
    limits. Its errors are stacks of the HTTP client; here they are one sentence, and an unknown job
    is None.
    """

    operator = VOLCANO
    _client: Any

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Returns the state of a job and of its pods; None if Kubernetes does not know it."""
        status = self._status(app_id)
        if status is None:
            return None
        state = status.get("state", {})
        pods = [
            (task, TASK_STATE.get(next(iter(counts["phase"]), ""), AppState.UNKNOWN), "")
            for task, counts in status.get("taskStatusCount", {}).items()
        ]
        job_state = JOB_PHASES.get(state.get("phase"), AppState.UNKNOWN)
        return app_response(app_id, job_state, state.get("message", ""), pods)

    def schedule(self, dryrun_info: AppDryRunInfo[KubernetesJob]) -> str:
        """Submits a job.

        Raises:
            ValueError: Kubernetes refuses it. The message is that of Kubernetes.
        """
        with refusals_as_sentences(self.operator):
            return str(super().schedule(dryrun_info))

    def log_iter(self, *args: Any, **options: Any) -> Iterable[str]:
        """Yields the lines of a pod, each with its line end."""
        with refusals_as_sentences(self.operator):
            for line in super().log_iter(*args, **options):
                yield line.rstrip("\n") + "\n"

    def _status(self, app_id: str) -> dict[str, Any] | None:
        """Returns the status of a job's custom resource; None if Kubernetes does not know it."""
        from kubernetes.client.rest import ApiException

        namespace, _, name = app_id.partition(":")
        with refusals_as_sentences(self.operator):
            try:
                job = self._custom_objects_api().get_namespaced_custom_object_status(
                    **self.operator.resource, namespace=namespace, name=name
                )
            except ApiException as error:
                if error.status == 404:
                    return None
                raise
        return dict(job.get("status", {}))

    def _api_client(self) -> Any:
        with warnings.catch_warnings():
            # Without an error here torchx would ask a server on this machine.
            warnings.filterwarnings("error", message="failed to load kube config")
            try:
                return super()._api_client()
            except UserWarning as warning:
                reason = str(warning).rstrip(".")
                raise ValueError(
                    f"Kubernetes needs $KUBECONFIG or ~/.kube/config; torchx {reason}."
                ) from None

    def _cancel_existing(self, app_id: str) -> None:
        namespace, _, name = app_id.partition(":")
        with refusals_as_sentences(self.operator):
            self._custom_objects_api().delete_namespaced_custom_object(
                **self.operator.resource, namespace=namespace, name=name
            )

    def _run_opts(self) -> runopts:
        return OPTIONS.add_to(super()._run_opts())

    def _submit_dryrun(self, app: AppDef, cfg: KubernetesOpts) -> AppDryRunInfo[KubernetesJob]:
        require_image(app, "Kubernetes")
        parts = OPTIONS.split(dict(cfg))
        with warnings.catch_warnings():
            # A warning about Volcano 1.4, fixed since by its pull request 1657.
            warnings.filterwarnings("ignore", message=r"\s*Role .* configured with restarts")
            info = super()._submit_dryrun(app, cfg)
        job: Any = sanitize_for_serialization(info.request.resource)
        for task in job["spec"]["tasks"]:
            add_options(task["template"]["spec"], app.roles[0].resource, parts)
            if "policies" in task and app.roles[0].retry_policy == RetryPolicy.REPLICA:
                task["policies"] = [{"event": lost, "action": RESTART_POD} for lost in LOST_POD]
        info.request.resource = job
        return info


def create_scheduler(session_name: str, **kwargs: Any) -> MsrecKubernetesScheduler:
    """Entry point for torchx."""
    return MsrecKubernetesScheduler(session_name, client=kwargs.get("client"))


def add_options(pod: dict[str, Any], resource: Resource, parts: Parts) -> None:
    """Writes CPUs, memory and options into a pod's spec; escapes its command and variables."""
    (container,) = pod["containers"]
    container["command"] = [escaped(word) for word in container["command"]]
    for variable in container["env"]:
        variable["value"] = escaped(variable["value"])
    for kind in ("requests", "limits"):
        container["resources"][kind]["memory"] = f"{resource.memMB}Mi"
    if resource.cpu > 0:
        container["resources"]["requests"]["cpu"] = f"{int(1000 * CPU_SHARE * resource.cpu)}m"
    for number, (claim, path) in enumerate(parts["volumes"]):
        volume = f"claim-{number}"
        pod["volumes"].append({"name": volume, "persistentVolumeClaim": {"claimName": claim}})
        container["volumeMounts"].append({"name": volume, "mountPath": path})
    if parts["secrets"]:
        container["envFrom"] = [{"secretRef": {"name": name}} for (name,) in parts["secrets"]]
    for variable, secret, key in parts["secret_env"]:
        source = {"secretKeyRef": {"name": secret, "key": key}}
        container["env"].append({"name": variable, "valueFrom": source})
    if parts["image_pull_secrets"]:
        pod["imagePullSecrets"] = [{"name": name} for (name,) in parts["image_pull_secrets"]]
    pod["nodeSelector"].update(parts["node_selector"])
    if parts["tolerations"]:
        pod["tolerations"] = [_toleration(*taint) for taint in parts["tolerations"]]


def escaped(text: str) -> str:
    """Escapes dollars: Kubernetes replaces $(NAME) by a variable's value, and $$ by a dollar."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def _toleration(key: str, value: str | None, effect: str) -> dict[str, str]:
    if value is None:
        return {"key": key, "operator": "Exists", "effect": effect}
    return {"key": key, "operator": "Equal", "value": value, "effect": effect}


@contextmanager
def refusals_as_sentences(operator: Operator) -> Iterator[None]:
    """Makes one sentence of an error of the API, or of the lack of an operator."""
    from kubernetes.client.rest import ApiException

    try:
        yield
    except ApiException as error:
        if error.status == 404 and error.body and error.body.startswith("404"):
            raise ValueError(
                f"the cluster must have {operator.name}, whose jobs msrec submits; its API does "
                f"not know {operator.group}/{operator.version}. Install {operator.name} "
                f"({operator.site}), or change the context."
            ) from None
        raise ValueError(f"Kubernetes refuses it: {_message(error)}.") from None
    except MaxRetryError as error:
        raise ConnectionError(
            f"the Kubernetes API at {error.pool.host}:{error.pool.port} must answer; it does not. "
            "Make sure that `kubectl get nodes` works here first."
        ) from None


def _message(error: Any) -> str:
    """Returns the message in the API's answer, or the HTTP status if it has none."""
    try:
        return str(json.loads(error.body)["message"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
