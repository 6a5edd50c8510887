"""The `msrec` command. Heavy imports are inside the commands, so that `--help` answers at once."""

import os
import sys
import traceback
from typing import Any

import typer

from msrec.data.io.mistakes import is_mistake
from msrec.data.io.names import visible
from msrec.data.io.paths import redacted, refuse_secrets
from msrec.launch.rank_errors import FAULT, MAY_PASS, MISTAKE
from msrec.tools.cli import data, evaluation, plan, reports, serving, studies, training
from msrec.tools.cli.arguments import take_local_paths
from msrec.tools.cli.bench import bench_app
from msrec.tools.cli.convert import convert_app
from msrec.tools.cli.launch import launch_app

app = typer.Typer(
    name="msrec",
    help="Multi-scenario recommendation on TorchRec with a frozen LLM in the loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
PANELS: dict[str, tuple[Any, ...]] = {
    "Data": (convert_app, data.synthetic, data.histories, data.show),
    "Training": (training.encode, training.train, training.track),
    "Evaluation": (
        *(evaluation.evaluate, evaluation.compare, evaluation.calibrate, evaluation.predict),
        *(reports.report, reports.explain, reports.drift),
    ),
    "Serving": (serving.export, serving.apply, serving.score, serving.serve),
    "Planning and launching": (plan.plan, launch_app),
    "Models, studies and this machine": (
        *(studies.zoo, studies.experiment, bench_app, studies.torture),
        *(studies.demo, studies.doctor),
    ),
}
"""Heading of `msrec --help` -> its commands and groups of commands."""
for panel, commands in PANELS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            for each in command.registered_commands:
                take_local_paths(each.callback)
            app.add_typer(command, rich_help_panel=panel)
        else:
            app.command(rich_help_panel=panel)(take_local_paths(command))


@app.callback()
def check_versions(context: typer.Context) -> None:
    """Refuse a wrong torch / fbgemm / torchrec before anything imports them.

    The frozen LLM needs none of them but torch, of which vLLM wants another version.
    """
    if context.invoked_subcommand not in ("doctor", "encode"):
        from msrec.launch.versions import require_versions

        require_versions()


def main() -> None:
    """Runs a command; a user's mistake is one sentence on stderr and exit status 2."""
    try:
        refuse_secrets("an argument", sys.argv[1:])  # before anything repeats or records it
        app(standalone_mode=True)
    except (ValueError, OSError) as error:
        rank = os.environ.get("RANK")
        status = FAULT if rank and _may_pass(error) else MISTAKE
        if is_mistake(error):
            error.__traceback__ = None  # the error file of a rank then has the sentence alone
        else:
            _print_stack(error)
        sentence = visible(redacted(str(error)))
        print(f"error{f' on rank {rank}' if rank else ''}: {sentence}", file=sys.stderr)
        _record(error)
        sys.exit(getattr(error, "exit_status", status))
    except Exception as error:
        _print_stack(error)
        _record(error)
        sys.exit(FAULT)


def _may_pass(error: Exception) -> bool:
    """Returns whether a rank may do without this error in another start, such as after a fault."""
    is_lasting = isinstance(error, ValueError | FileNotFoundError) and is_mistake(error)
    return not is_lasting or hasattr(error, MAY_PASS)


def _print_stack(error: Exception) -> None:
    """Prints a stack without secrets, which a library may have put into its message."""
    print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _record(error: Exception) -> None:
    """Writes the error where torchrun looks for a rank's error, without secrets."""
    if (text := redacted(str(error))) != str(error):
        error = ValueError(text)
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        handler = get_error_handler()
        handler.initialize()
        handler.record_exception(error)
