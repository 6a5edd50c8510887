"""`python -m msrec.launch.cluster.elastic_agent`: the torchrun agent of a node.

The agent takes torchrun's options and starts the ranks of its node. It differs from torchrun in the
errors: it prints the first one instead of the stacks of all ranks, and it does not restart ranks
that ask for no restart or found a user's mistake.
"""

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

from msrec.launch.rank_errors import MISTAKE, NO_RESTART, error_text


class Agent(LocalElasticAgent):
    """torchrun's agent, which also says why it restarts ranks, or does not."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if any(failure.exitcode in (NO_RESTART, MISTAKE) for failure in result.failures.values()):
            self._remaining_restarts = 0
        elif result.failures and self._remaining_restarts > 0:
            rank, failure = first_failed_rank(result.failures)
            message = str(error_text(failure.message)).splitlines()[-1]
            left = f"starts left: {self._remaining_restarts}"
            print(f"rank {rank} failed, all ranks start again ({left}): {message}", file=sys.stderr)
        return result


def first_failed_rank(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Returns the rank that failed first, out of ranks whose failures were seen together.

    The others fail because a peer is gone: with an exception, sometimes with an abort, never by
    SIGKILL. So a killed rank comes first, then other signals, then exceptions. Time stamps, which
    are whole seconds, decide among equals.
    """

    def how_late(rank: int) -> tuple[bool, bool, int]:
        failure = failures[rank]
        return failure.exitcode != -signal.SIGKILL, failure.exitcode >= 0, failure.timestamp

    first = min(failures, key=how_late)
    return first, failures[first]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs torchrun with its own options and exits with 1 if a rank failed.

    The error is one sentence for a user's mistake, and otherwise the stack of the rank that failed
    first.
    """
    vars(launcher)["LocalElasticAgent"] = Agent  # torchrun has no option for it
    # It warns about each rank that it stops because another one failed.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.ERROR)
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]  # torch leaves them untyped
    except SignalException as stopped:
        print(f"stopped by {stopped.sigval.name}", file=sys.stderr)
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # torchx reads the failure from the error file of this process.
        get_error_handler().dump_error_file(failure.error_file, failure.exitcode)
        print(f"error on rank {rank}: {error_text(failure.message)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
