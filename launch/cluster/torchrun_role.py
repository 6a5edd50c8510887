"""One torchrun role: the command, the environment and the retries that every job shares."""

import shlex
import sys

import torchx
from torchx import specs
from torchx.components.dist import parse_nnodes
from torchx.specs import macros

ENVIRONMENT = {
    # Without it a restarted rank reads the dead attempt's address from the shared store.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # Two threads a rank on busy cores make steps stall; one rank per core instead.
    "OMP_NUM_THREADS": "1",
    "LOGLEVEL": "WARNING",
}


def torchrun_app(
    job: str,
    args: list[str],
    *,
    j: str,
    image: str,
    resource: specs.Resource,
    max_restarts: int,
    max_retries: int,
    port: int,
    python: str,
    threads: int = 1,
    log_dir: str | None = None,
) -> specs.AppDef:
    """An app of one role that runs `msrec JOB ARGS` on every rank.

    Args:
        job: the msrec command; also the role's name, so letters and digits only.
        args: its arguments.
        j: "nodes x ranks per node", such as 2x8.
        image: container image, or the folder for local and Slurm jobs.
        resource: of one node.
        max_restarts: of the ranks of a node by torchrun after a crash.
        max_retries: of the whole job by the scheduler.
        port: of the rendezvous when there are several nodes.
        python: interpreter; empty takes this one for local images and `python` in containers.
        threads: OMP_NUM_THREADS of a rank.
        log_dir: where every rank's output goes, a folder a node and attempt; None is a temporary
            one.
    """
    min_nodes, max_nodes, ranks, nodes = parse_nnodes(j)
    # On several nodes the scheduler names rank 0's host in a variable that the shell reads.
    endpoint = "localhost:0" if max_nodes == 1 else f"$${{{macros.rank0_env}:=localhost}}:{port}"
    command = [
        python or (sys.executable if image == torchx.IMAGE else "python"),
        *("-m", "msrec.launch.cluster.elastic_agent"),
        *("--rdzv-backend", "c10d", "--rdzv-id", macros.app_id),
        *("--rdzv-conf", "join_timeout=300,last_call_timeout=5"),
        *("--nnodes", nodes, "--nproc-per-node", str(ranks), "--max-restarts", str(max_restarts)),
        *("--tee", "3", "--local-ranks-filter", "0", "--role", ""),
        *(["--log-dir", log_dir] if log_dir else []),
        # torchx reads $ as the start of a macro.
        *("--module", "msrec", job, *(arg.replace("$", "$$") for arg in args)),
    ]
    # The endpoint stays unquoted: the shell has to expand it.
    line = " ".join(map(shlex.quote, command[:3])) + f" --rdzv-endpoint {endpoint} "
    line += " ".join(map(shlex.quote, command[3:]))
    return specs.AppDef(
        name=job,
        roles=[
            specs.Role(
                name=job,
                image=image,
                min_replicas=min_nodes,
                num_replicas=max_nodes,
                entrypoint="bash",
                args=["-c", line],
                env=ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)},
                resource=resource,
                max_retries=max_retries,
                port_map={"c10d": port},
            )
        ],
    )
