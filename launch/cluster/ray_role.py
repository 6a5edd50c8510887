"""Builds the torchx app of a job on a Ray cluster: one command, whose tasks run on the nodes."""

from torchx.components.dist import parse_nnodes
from torchx.specs import AppDef, Role

from msrec.launch.cluster.schedulers.options import WORKERS_PER_NODE
from msrec.launch.cluster.torchrun_role import LaunchOptions, literal, parse_mounts


def ray_app(job: str, args: list[str], options: LaunchOptions) -> AppDef:
    """Returns an app whose nodes are the workers of a Ray cluster that `msrec JOB ARGS` uses.

    Args:
        job: the msrec command.
        args: arguments of the command, with the engine `ray` and its address.
        options: `-j 4x16` is four nodes with a worker process for each of 16 cores.

    Raises:
        ValueError: the number of nodes is not fixed.
    """
    fewest, nodes, workers, _ = parse_nnodes(options.nodes_and_ranks)
    if fewest != nodes:
        raise ValueError(
            f"-j must be nodes x workers, such as 4x16, for KubeRay, which starts a command when "
            f"all nodes are there; got {options.nodes_and_ranks}."
        )
    role = Role(
        name=job,
        image=options.image,
        num_replicas=nodes,
        entrypoint=literal(options.python or "python"),
        args=["-m", "msrec", job, *map(literal, args)],
        env={name: literal(value) for name, value in options.env.items() if value != ""},
        resource=options.resource,
        max_retries=options.max_retries,
        mounts=parse_mounts(options.mounts),
        metadata={WORKERS_PER_NODE: workers},
    )
    return AppDef(name=options.name or job, roles=[role])
