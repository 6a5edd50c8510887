"""Named node sizes, for `-h NAME` of torchx and `resource: NAME` of a profile."""

import difflib
from collections.abc import Collection
from importlib.metadata import entry_points

from torchx.specs import Resource, resource
from torchx.specs.named_resources_aws import EFA_DEVICE, aws_p4de_24xlarge, aws_p5_48xlarge
from torchx.specs.named_resources_aws import NAMED_RESOURCES as AWS_RESOURCES
from torchx.specs.named_resources_generic import NAMED_RESOURCES as GENERIC_RESOURCES

USABLE_MIB = 983
"""Usable MiB per GiB of a machine; the system, Kubernetes and AWS keep the rest."""


def cpu8() -> Resource:
    """8 cores and 30 GiB on any machine."""
    return Resource(cpu=8, gpu=0, memMB=32 * USABLE_MIB)


def a100x8() -> Resource:
    """Eight A100 GPUs of 80 GiB: an AWS p4de.24xlarge with its EFA network."""
    return aws_p4de_24xlarge()


def h100x8() -> Resource:
    """Eight H100 GPUs of 80 GiB: an AWS p5.48xlarge with its EFA network."""
    return aws_p5_48xlarge()


def node_resource(cpu: int, gpu: int, mem_mib: int, name: str | None) -> Resource:
    """Returns the resource of one node.

    Args:
        cpu: cores.
        gpu: GPUs.
        mem_mib: memory in MiB.
        name: a named resource, which replaces the three numbers.

    Raises:
        ValueError: no resource has that name.

    Example:
        >>> node_resource(2, 0, 1024, "msrec_h100x8").gpu
        8
    """
    if name:
        installed = sorted(entry_points(group="torchx.named_resources").names)
        known = [*installed, *GENERIC_RESOURCES, *AWS_RESOURCES]
        if name not in known:
            near = closest_names(name, known)
            raise ValueError(f"a named resource must be known; got {name!r}, near it are {near}.")
    return resource(cpu=cpu, gpu=gpu, memMB=mem_mib, h=name)


def network_env(node: Resource) -> dict[str, str]:
    """Returns the environment variables for NCCL that jobs on such a node have by default.

    NCCL and its plugins find interfaces, topology and algorithms themselves, so there is nothing
    for speed here.

    Example:
        >>> network_env(node_resource(8, 0, 1024, None))
        {}
        >>> network_env(node_resource(0, 0, 0, "msrec_h100x8"))
        {'NCCL_DEBUG': 'WARN', 'FI_EFA_USE_HUGE_PAGE': '0'}
    """
    # Silent by default, so that torch only reports an "unhandled system error".
    nccl = {"NCCL_DEBUG": "WARN"} if node.gpu > 0 else {}
    # EFA takes huge pages until a fork finds none left ("Cannot allocate memory"). AWS sets it for
    # PyTorch: https://github.com/aws-samples/awsome-distributed-training (efa-cheatsheet.md).
    return nccl | ({"FI_EFA_USE_HUGE_PAGE": "0"} if EFA_DEVICE in node.devices else {})


def closest_names(name: str, known: Collection[str]) -> str:
    """Returns the known names closest to an unknown one, or all if none is close."""
    return ", ".join(difflib.get_close_matches(name, known) or known)
