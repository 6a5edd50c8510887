"""`torchx run`, `list` and `log`; torchx's own end with a stack, or never, in some cases."""

import argparse
import logging
import sys
from typing import NoReturn

from torchx.cli.cmd_list import CmdList
from torchx.cli.cmd_log import CmdLog, validate
from torchx.cli.cmd_run import CmdRun
from torchx.runner import get_runner
from torchx.specs import make_app_handle

from msrec.launch.cluster.schedulers.options import refuse_ignored

log = logging.getLogger(__name__)


class Run(CmdRun):  # type: ignore[misc]  # torchx is untyped
    """`torchx run`; a scheduler may lack its library, or ignore an option."""

    def run(self, args: argparse.Namespace) -> None:
        """Runs a component."""
        words = " ".join(args.component_name_and_args).partition(" -- ")[0].replace("=", " ")
        options = words.split(" ")
        policy = "REPLICA" if "--retry_policy REPLICA" in words else "APPLICATION"
        try:
            refuse_ignored(args.scheduler, mounts="--mounts" in options, retry_policy=policy)
            super().run(args)
        except (ImportError, ValueError) as error:
            _fail(error)


class ListJobs(CmdList):  # type: ignore[misc]
    """`torchx list`; a scheduler may refuse to list."""

    def run(self, args: argparse.Namespace) -> None:
        """Lists the jobs of a scheduler."""
        try:
            super().run(args)
        except (ImportError, OSError, ValueError) as error:
            _fail(error)


class Log(CmdLog):  # type: ignore[misc]
    """`torchx log`; torchx waits forever for a job that its scheduler does not know."""

    def run(self, args: argparse.Namespace) -> None:
        """Prints the output of a job."""
        validate(args.identifier)
        scheduler, _, path = args.identifier.partition("://")
        session, app_id = path.split("/")[:2]
        handle = make_app_handle(scheduler, session or "default", app_id)
        try:
            with get_runner() as runner:
                is_known = runner.status(handle) is not None
        except ImportError as error:
            _fail(error)
        if not is_known:
            _fail(f"{scheduler} must know the job {app_id} to print its output; it does not.")
        super().run(args)


def _fail(error: object) -> NoReturn:
    log.error("%s", error)
    sys.exit(1)
