"""Builds the torchx app of a job: one torchrun agent per node, which starts the ranks there.

Words used by torchx and torchrun:

* rank: one process of a job, numbered over all nodes.
* agent: the torchrun process of a node, here `elastic_agent.py`. It starts the ranks of its node
  and starts them again after a crash.
* rendezvous: all agents meet at a port of the first node before they start their ranks.
* role: a group of identical processes that torchx starts. A job has one role, its agents.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torchx
from torchx import specs
from torchx.components.dist import parse_nnodes
from torchx.specs import macros

from msrec.data.io.paths import refuse_secrets
from msrec.launch.cluster.resources import network_env

RENDEZVOUS_PORT = 29500
MAX_NODES, MAX_RANKS, MAX_STARTS = 4096, 256, 1000
NAME = re.compile(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?")
"""Names of jobs. Kubernetes makes host names of them, with up to 33 characters more."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_THREADS = 16
"""Threads of a rank with a GPU, whose CPU only prepares batches and copies checkpoints."""
RETRY_POLICIES = (specs.RetryPolicy.APPLICATION.value, specs.RetryPolicy.REPLICA.value)


@dataclass(frozen=True)
class LaunchOptions:
    """Options that all jobs share.

    Attributes:
        nodes_and_ranks: nodes x ranks per node, such as 2x8.
        image: container image, or the folder of the code for local and Slurm jobs.
        resource: cores, GPUs and memory of one node.
        max_restarts: how often the agents start the ranks again after a crash.
        max_retries: how often the scheduler starts the whole job again.
        port: port of the rendezvous, if there are several nodes.
        python: interpreter; empty means this one for local images and `python` in containers.
        threads: threads per rank. None is 1 on a node without GPUs, because two on busy cores make
            steps stall; with GPUs it is the rank's share of the cores, at most MAX_THREADS.
        name: name of the job for the scheduler; empty means that of the command.
        env: environment variables of the agents and ranks. They take precedence over the defaults
            for a node's network and for torch; an empty value leaves a default out.
        mounts: mounts of a container, each type=bind|volume|device,src=...,dst=...[,readonly].
        retry_policy: APPLICATION if a retry starts the whole job again, REPLICA if it starts the
            lost node alone.

    Raises:
        ValueError: an option has another form, or a number is out of range.
    """

    nodes_and_ranks: str
    image: str
    resource: specs.Resource
    max_restarts: int = 0
    max_retries: int = 0
    port: int = RENDEZVOUS_PORT
    python: str = ""
    threads: int | None = None
    name: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[str] = ()
    retry_policy: str = RETRY_POLICIES[0]

    def __post_init__(self) -> None:
        try:
            fewest, most, ranks, _ = parse_nnodes(self.nodes_and_ranks)
        except ValueError:
            fewest, most, ranks = 0, 0, 0
        if not (1 <= fewest <= most <= MAX_NODES and 1 <= ranks <= MAX_RANKS):
            raise ValueError(
                f"-j must be nodes x ranks per node, such as 2x8, with up to {MAX_NODES:,} nodes "
                f"of up to {MAX_RANKS} ranks; got {self.nodes_and_ranks!r:.60}."
            )
        for name, value, first, last in (
            ("restarts", self.max_restarts, 0, MAX_STARTS),
            ("retries", self.max_retries, 0, MAX_STARTS),
            ("rendezvous port", self.port, 1024, 65535),
            ("threads of a rank", self.threads_per_rank, 1, 1024),
        ):
            if not first <= value <= last:
                raise ValueError(f"{name} must be from {first} to {last:,}; got {value:,}.")
        _check_texts(self)
        parse_mounts(self.mounts)

    @property
    def threads_per_rank(self) -> int:
        """Value of OMP_NUM_THREADS."""
        if self.threads is not None:
            return self.threads
        if not self.resource.gpu:
            return 1
        share: int = self.resource.cpu // parse_nnodes(self.nodes_and_ranks)[2]
        return min(MAX_THREADS, max(1, share))


def _check_texts(options: LaunchOptions) -> None:
    refuse_secrets("an environment variable", dict(options.env))
    if options.name and not NAME.fullmatch(options.name):
        raise ValueError(
            "a job's name must be up to 30 small letters, digits and dashes, a letter first; got "
            f"{options.name!r:.60}."
        )
    for name in options.env:
        if not VARIABLE.fullmatch(name):
            raise ValueError(
                "an environment variable must have a name of letters, digits and underscores; got "
                f"{name!r:.60}."
            )
    if options.retry_policy not in RETRY_POLICIES:
        raise ValueError(
            f"the retry policy must be {' or '.join(RETRY_POLICIES)}; got "
            f"{options.retry_policy!r:.60}."
        )


def parse_mounts(texts: Sequence[str]) -> list[specs.BindMount]:
    """Returns torchx's mounts (bind, volume or device).

    Raises:
        ValueError: a text is not a mount.
    """
    words = ",".join(texts)
    try:
        mounts: list[specs.BindMount] = specs.parse_mounts(words.split(",") if words else [])
    except (KeyError, ValueError) as error:
        raise ValueError(
            "a mount must be type=bind|volume|device,src=SOURCE,dst=/PATH[,readonly]; got "
            f"{words!r} (torchx: {error.args[0]})."
        ) from None
    return mounts


def torchrun_app(
    job: str, args: list[str], options: LaunchOptions, log_dir: str | None = None
) -> specs.AppDef:
    """Returns an app of one role that runs `msrec JOB ARGS` on every rank.

    Args:
        job: the msrec command. It names the role too, so it has letters and digits only.
        args: arguments of the command.
        options: nodes, ranks and retries.
        log_dir: folder for the output of the ranks, with a subfolder per node and attempt; None
            uses a temporary folder.
    """
    min_nodes, max_nodes, _, _ = parse_nnodes(options.nodes_and_ranks)
    has_gpus = options.resource.gpu > 0
    given = {name: literal(value) for name, value in options.env.items()}
    role = specs.Role(
        name=job,
        image=options.image,
        min_replicas=min_nodes,
        num_replicas=max_nodes,
        entrypoint="bash",
        args=["-c", _agent_command(job, args, options, log_dir)],
        env={
            # Without it a restarted rank reads the dead attempt's address from the shared store.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": str(options.threads_per_rank),
            "LOGLEVEL": "WARNING",
            # Pinned memory, which holds a copy of the tables for a checkpoint, would otherwise be
            # rounded up to a power of two.
            **({"PYTORCH_ALLOC_CONF": "pinned_max_round_threshold_mb:64"} if has_gpus else {}),
        }
        | network_env(options.resource)
        | given,
        resource=options.resource,
        max_retries=options.max_retries,
        retry_policy=specs.RetryPolicy(options.retry_policy),
        port_map={"c10d": options.port},
        mounts=parse_mounts(options.mounts),
    )
    role.env = {name: value for name, value in role.env.items() if value != ""}
    return specs.AppDef(name=options.name or job, roles=[role])


def _agent_command(job: str, args: list[str], options: LaunchOptions, log_dir: str | None) -> str:
    _, max_nodes, ranks, nodes = parse_nnodes(options.nodes_and_ranks)
    is_local = options.image == torchx.IMAGE
    python = options.python or (sys.executable if is_local else "python")
    start = [literal(python), "-m", "msrec.launch.cluster.elastic_agent"]
    rest = [
        *("--rdzv-backend", "c10d", "--rdzv-id", macros.app_id),
        *("--rdzv-conf", "join_timeout=300,last_call_timeout=5"),
        *("--nnodes", nodes, "--nproc-per-node", str(ranks)),
        *("--max-restarts", str(options.max_restarts)),
        *("--tee", "3", "--local-ranks-filter", "0", "--role", ""),
        *(["--log-dir", literal(log_dir)] if log_dir else []),
        *("--module", "msrec", job, *map(literal, args)),
    ]
    # The scheduler puts the first node's host into a variable. The shell expands it, so the
    # endpoint stays unquoted.
    first_node = f"$${{{macros.rank0_env}:=localhost}}:{options.port}"
    endpoint = "localhost:0" if max_nodes == 1 else first_node
    return f"{shlex.join(start)} --rdzv-endpoint {endpoint} {shlex.join(rest)}"


def literal(text: str) -> str:
    """Returns a text for torchx, which reads $ as the start of a macro."""
    return text.replace("$", "$$")
