"""`msrec launch ...`: jobs on several ranks, and how they are."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from msrec.tools.cli_arguments import Config, Overrides

launch_app = typer.Typer(help="Jobs on several ranks, here or on a cluster.", no_args_is_help=True)

On = Annotated[
    str, typer.Option("--on", help="a profile: local, slurm, kubernetes, aws_batch, ray")
]
Profiles = Annotated[Path | None, typer.Option(help="YAML of your own, as launch/profiles.yaml")]
NodesAndRanks = Annotated[str, typer.Option("-j", help="nodes x ranks per node")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be submitted, and stop")]
Wait = Annotated[bool, typer.Option("--wait", help="until the job ends; local ones always")]


def _submits(job: Literal["train", "encode"], about: str) -> None:
    """A command that submits a job; all of them have the same options."""

    def command(
        config: Config,
        overrides: Overrides = None,
        on: On = "local",
        j: NodesAndRanks = "1x2",
        profiles: Profiles = None,
        dry_run: DryRun = False,
        wait: Wait = False,
    ) -> None:
        from msrec.launch.profiles import load_profile
        from msrec.launch.submit import launch
        from msrec.launch.terminal import wide_console

        profile = (on, load_profile(on, profiles))
        where = (profile, j, wide_console())
        raise typer.Exit(launch(job, config, overrides or [], *where, dry_run=dry_run, wait=wait))

    launch_app.command(job, help=about)(command)


_submits(
    "train",
    "Train on several ranks, here or on a cluster; the same run_id goes on with its run.",
)
_submits("encode", "Read users and scenarios with the frozen LLM on several ranks.")


@launch_app.command("cancel")
def launch_cancel(run: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """Ask a run to stop; it saves where it stands first."""
    from msrec.launch.submit import cancel

    typer.echo(cancel(run))


@launch_app.command("logs")
def launch_logs(
    run: Annotated[Path, typer.Argument(help="run folder")],
    rank: Annotated[int, typer.Option(min=0)] = 0,
    stream: Annotated[Literal["stderr", "stdout"], typer.Option()] = "stderr",
) -> None:
    """What a rank wrote in its last attempt."""
    from msrec.launch.status import log_file

    typer.echo(log_file(run, rank, stream).read_text(), nl=False)


@launch_app.command("status")
def launch_status(
    run: Annotated[Path, typer.Argument(help="run folder, such as runs/first")],
) -> None:
    """How a run is: step, loss, speed, time left; each rank's last word; who hangs or is dead.

    Exit status 0 where the run goes on, is done or was stopped; 1 where something is wrong.
    """
    from msrec.launch.status import tell_status
    from msrec.launch.terminal import wide_console

    raise typer.Exit(tell_status(run, wide_console()).exit_status)
