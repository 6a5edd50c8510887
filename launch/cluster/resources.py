"""Named sizes of a node, for `-h NAME` of torchx and `resource: NAME` of a profile."""

import difflib
from importlib.metadata import entry_points

from torchx.specs import Resource, resource
from torchx.specs.named_resources_aws import K8S_ITYPE
from torchx.specs.named_resources_aws import NAMED_RESOURCES as OF_AWS
from torchx.specs.named_resources_generic import NAMED_RESOURCES as GENERIC

USABLE_MIB = 983
"""Of each GiB of a machine; the system, Kubernetes and AWS keep the rest."""


def cpu8() -> Resource:
    """8 cores and 30 GiB, of any kind of machine."""
    return Resource(cpu=8, gpu=0, memMB=32 * USABLE_MIB)


def a100x8() -> Resource:
    """Eight A100 of 80 GiB: an AWS p4de.24xlarge, which Kubernetes and AWS Batch are asked for."""
    itype = {K8S_ITYPE: "p4de.24xlarge"}
    return Resource(cpu=96, gpu=8, memMB=1152 * USABLE_MIB, capabilities=itype)


def h100x8() -> Resource:
    """Eight H100 of 80 GiB: an AWS p5.48xlarge, which Kubernetes and AWS Batch are asked for."""
    itype = {K8S_ITYPE: "p5.48xlarge"}
    return Resource(cpu=192, gpu=8, memMB=2048 * USABLE_MIB, capabilities=itype)


def node(cpu: int, gpu: int, mem_mib: int, name: str | None) -> Resource:
    """What one node of a job has.

    Args:
        cpu: cores.
        gpu: GPUs.
        mem_mib: MiB.
        name: a named resource, in place of the three.

    Raises:
        ValueError: there is no resource of that name; the known ones are named.

    Example:
        >>> node(2, 0, 1024, "msrec_h100x8").gpu
        8
    """
    known = known_resources()
    if name and name not in known:
        near = difflib.get_close_matches(name, known) or known
        raise ValueError(
            f"a named resource must be known; got {name!r}, near it are {', '.join(near)}."
        )
    return resource(cpu=cpu, gpu=gpu, memMB=mem_mib, h=name)


def known_resources() -> list[str]:
    """Names that `-h` takes: those of every installed package, then torchx's own."""
    return [*sorted(entry_points(group="torchx.named_resources").names), *GENERIC, *OF_AWS]
