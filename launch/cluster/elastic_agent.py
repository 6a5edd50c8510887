"""`python -m msrec.launch.cluster.elastic_agent`: torchrun that ends with the first error."""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence

import torch.distributed.launcher.api as launcher
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    get_error_handler,
)
from torch.distributed.run import parse_args, run

from msrec.launch.rank_errors import NO_RESTART, error_text


class Agent(LocalElasticAgent):
    """Torchrun's agent, which says why it starts ranks again, and does not where they ask it."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if any(failure.exitcode == NO_RESTART for failure in result.failures.values()):
            self._remaining_restarts = 0
        elif result.failures and self._remaining_restarts > 0:
            rank, failure = cause_of(result.failures)
            said = str(error_text(failure.message)).splitlines()[-1]
            left = f"{self._remaining_restarts} such starts are left"
            print(f"rank {rank} failed, all ranks start again ({left}): {said}", file=sys.stderr)
        return result


def cause_of(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank that failed first, of those that were found failed together.

    Others fail of it, and stamps are whole seconds. Nobody gets SIGKILL because a peer is gone; an
    exception does follow, and now and then an abort.
    """

    def how_late(rank: int) -> tuple[bool, bool, int]:
        failure = failures[rank]
        return failure.exitcode != -signal.SIGKILL, failure.exitcode >= 0, failure.timestamp

    first = min(failures, key=how_late)
    return first, failures[first]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run torchrun with its own options; exit with 1 when a rank failed.

    torchrun itself ends with a page of its own stack and of every rank's. Here stands one sentence
    for a user's mistake, and one stack, that of the rank that failed first, for anything else.
    """
    vars(launcher)["LocalElasticAgent"] = Agent  # torchrun has no option for it
    # It warns of each rank that it stops because another one failed.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]  # torch leaves them untyped
    except SignalException as stopped:
        print(f"stopped by {stopped.sigval.name}", file=sys.stderr)
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # torchx reads the failure from this process's own error file.
        get_error_handler().dump_error_file(failure.error_file, failure.exitcode)
        print(f"error on rank {rank}: {error_text(failure.message)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
