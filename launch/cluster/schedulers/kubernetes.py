"""Kubernetes (Volcano) with volumes, secrets and tolerations; its refusals as sentences."""

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torchx.schedulers.api import DescribeAppResponse
from torchx.schedulers.kubernetes_scheduler import (
    JOB_STATE,
    TASK_STATE,
    KubernetesJob,
    KubernetesOpts,
    KubernetesScheduler,
    sanitize_for_serialization,
)
from torchx.specs import (
    AppDef,
    AppDryRunInfo,
    AppState,
    ReplicaStatus,
    Role,
    RoleStatus,
    runopts,
)
from urllib3.exceptions import MaxRetryError

from msrec.launch.cluster.schedulers.image import require_image
from msrec.launch.cluster.schedulers.options import Given, add_options, parts

NAME = r"([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)"
LABEL = r"([A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?)"
EFFECT = "(NoSchedule|PreferNoSchedule|NoExecute)"
OPTIONS = {
    "volumes": ("CLAIM:/PATH", f"{NAME}:(/.+)", "persistent volume claims to mount"),
    "secrets": ("SECRET", NAME, "secrets whose keys become environment variables"),
    "secret_env": (
        "VARIABLE:SECRET/KEY",
        f"([A-Za-z_][A-Za-z0-9_]*):{NAME}/([-._A-Za-z0-9]+)",
        "environment variables that are one key of a secret",
    ),
    "image_pull_secrets": ("SECRET", NAME, "secrets of the image's registry"),
    "node_selector": ("LABEL:VALUE", f"{LABEL}:{LABEL}", "labels that a node must have"),
    "tolerations": (
        "TAINT[:VALUE]:EFFECT",
        f"{LABEL}(?::{LABEL})?:{EFFECT}",
        "taints of nodes to accept",
    ),
}
"""See `Forms`."""
VOLCANO = {"group": "batch.volcano.sh", "version": "v1alpha1", "plural": "jobs"}
PHASES = JOB_STATE | {"Completing": AppState.RUNNING}
"""torchx does not know the phase between the last pod's end and the job's."""


class MsrecKubernetesScheduler(KubernetesScheduler):  # type: ignore[misc]  # torchx is untyped
    """Stock torchx knows no claims, secrets or tolerations, and asks for 1 GiB less than the limit.

    There a job that Kubernetes does not know is a stack of the HTTP client. Here it is None, as
    torchx wants it, and every other refusal is one sentence.
    """

    _client: Any

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """The state of a job and of its pods; None where Kubernetes does not know it."""
        from kubernetes.client.rest import ApiException

        namespace, _, name = app_id.partition(":")
        with _sentences():
            try:
                job = self._custom_objects_api().get_namespaced_custom_object_status(
                    **VOLCANO, namespace=namespace, name=name
                )
            except ApiException as error:
                if error.status == 404:
                    return None
                raise
        status = job.get("status", {})
        state = status.get("state", {})
        roles: dict[str, Role] = {}
        statuses: dict[str, RoleStatus] = {}
        for task, counts in status.get("taskStatusCount", {}).items():
            role, _, number = task.rpartition("-")
            roles.setdefault(role, Role(name=role, num_replicas=0, image="")).num_replicas += 1
            phase = TASK_STATE.get(next(iter(counts["phase"]), ""), AppState.UNKNOWN)
            replica = ReplicaStatus(id=int(number), role=role, state=phase, hostname="")
            statuses.setdefault(role, RoleStatus(role, [])).replicas.append(replica)
        return DescribeAppResponse(
            app_id=app_id,
            roles=list(roles.values()),
            roles_statuses=list(statuses.values()),
            state=PHASES.get(state.get("phase"), AppState.UNKNOWN),
            msg=state.get("message", ""),
        )

    def schedule(self, dryrun_info: AppDryRunInfo[KubernetesJob]) -> str:
        """Submit a job.

        Raises:
            ValueError: Kubernetes refuses it, in its own words.
        """
        with _sentences():
            return str(super().schedule(dryrun_info))

    def log_iter(self, *args: Any, **options: Any) -> Iterable[str]:
        """The lines of a pod, each with its end."""
        with _sentences():
            for line in super().log_iter(*args, **options):
                yield line.rstrip("\n") + "\n"

    def _api_client(self) -> Any:
        with warnings.catch_warnings():
            # Else torchx asks a server on this machine.
            warnings.filterwarnings("error", message="failed to load kube config")
            try:
                return super()._api_client()
            except UserWarning as warning:
                told = str(warning).rstrip(".")
                raise ValueError(
                    f"Kubernetes needs $KUBECONFIG or ~/.kube/config; torchx {told}."
                ) from None

    def _cancel_existing(self, app_id: str) -> None:
        with _sentences():
            super()._cancel_existing(app_id)

    def _run_opts(self) -> runopts:
        options = super()._run_opts()
        add_options(options, OPTIONS)
        return options

    def _submit_dryrun(self, app: AppDef, cfg: KubernetesOpts) -> AppDryRunInfo[KubernetesJob]:
        require_image(app, "Kubernetes")
        given = parts(OPTIONS, dict(cfg))
        with warnings.catch_warnings():
            # Of Volcano 1.4; its pull request 1657 has mended it since.
            warnings.filterwarnings("ignore", message=r"\s*Role .* configured with restarts")
            info = super()._submit_dryrun(app, cfg)
        job: Any = sanitize_for_serialization(info.request.resource)
        for task in job["spec"]["tasks"]:
            _edit(task["template"]["spec"], app.roles[0].resource.memMB, given)
        info.request.resource = job
        return info


def create_scheduler(session_name: str, **kwargs: Any) -> MsrecKubernetesScheduler:
    """For torchx."""
    return MsrecKubernetesScheduler(session_name, client=kwargs.get("client"))


def _edit(pod: dict[str, Any], mem_mib: int, given: Given) -> None:
    """Write the options into a pod's spec, and the command as Kubernetes takes it for itself."""
    (container,) = pod["containers"]
    # $(NAME) would be the value of a variable, and $$ one dollar.
    container["command"] = [re.sub(r"\$(?=[$(])", "$$", word) for word in container["command"]]
    for kind in ("requests", "limits"):
        container["resources"][kind]["memory"] = f"{mem_mib}Mi"
    for number, (claim, path) in enumerate(given["volumes"]):
        volume = f"claim-{number}"
        pod["volumes"].append({"name": volume, "persistentVolumeClaim": {"claimName": claim}})
        container["volumeMounts"].append({"name": volume, "mountPath": path})
    if given["secrets"]:
        container["envFrom"] = [{"secretRef": {"name": name}} for (name,) in given["secrets"]]
    for variable, secret, key in given["secret_env"]:
        source = {"secretKeyRef": {"name": secret, "key": key}}
        container["env"].append({"name": variable, "valueFrom": source})
    if given["image_pull_secrets"]:
        pod["imagePullSecrets"] = [{"name": name} for (name,) in given["image_pull_secrets"]]
    pod["nodeSelector"].update(given["node_selector"])
    if given["tolerations"]:
        pod["tolerations"] = [_toleration(*taint) for taint in given["tolerations"]]


def _toleration(key: str, value: str | None, effect: str) -> dict[str, str]:
    if value is None:
        return {"key": key, "operator": "Exists", "effect": effect}
    return {"key": key, "operator": "Equal", "value": value, "effect": effect}


@contextmanager
def _sentences() -> Iterator[None]:
    from kubernetes.client.rest import ApiException

    try:
        yield
    except ApiException as error:
        raise ValueError(f"Kubernetes refuses it: {_told(error)}.") from None
    except MaxRetryError as error:
        raise ConnectionError(
            f"the Kubernetes API at {error.pool.host}:{error.pool.port} must answer; it does not. "
            "`kubectl get nodes` has to work here first."
        ) from None


def _told(error: Any) -> str:
    """The message of the API's answer; what HTTP says where there is none."""
    try:
        return str(json.loads(error.body)["message"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
