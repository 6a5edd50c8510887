"""`msrec launch ...`: jobs on several ranks, and how they are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msrec.tools.cli.arguments import Config, Overrides

if TYPE_CHECKING:
    from msrec.launch.cluster.job_specs import JobSpec

launch_app = typer.Typer(help="Jobs on several ranks, here or on a cluster.", no_args_is_help=True)

On = Annotated[
    str, typer.Option("--on", help="a profile: local, slurm, kubernetes, aws_batch, ray")
]
Profiles = Annotated[Path | None, typer.Option(help="YAML of your own, as launch/profiles.yaml")]
NodesAndRanks = Annotated[str, typer.Option("-j", help="nodes x ranks per node")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be submitted, and stop")]
JobFolder = Annotated[
    Path, typer.Argument(help="a run's folder, or of a job in it: runs/first/jobs/evaluate-test")
]
Run = Annotated[Path, typer.Argument(help="run folder, such as runs/demo")]
Wait = Annotated[bool, typer.Option("--wait", help="until the job ends; local ones always")]


def _submits(job: Literal["train", "encode"], about: str) -> None:
    """A command that submits a job of a config; both of them have the same options."""

    def command(
        config: Config,
        overrides: Overrides = None,
        on: On = "local",
        j: NodesAndRanks = "1x2",
        profiles: Profiles = None,
        dry_run: DryRun = False,
        wait: Wait = False,
    ) -> None:
        from msrec.launch.cluster.job_specs import encode_spec, train_spec
        from msrec.launch.config import load_config

        work_of = train_spec if job == "train" else encode_spec
        _submit(work_of(load_config(config, overrides or [])), on, j, profiles, dry_run, wait)

    launch_app.command(job, help=about)(command)


_submits(
    "train",
    "Train on several ranks, here or on a cluster; the same run_id goes on with its run.",
)
_submits("encode", "Read users and scenarios with the frozen LLM on several ranks.")


@launch_app.command()
def evaluate(
    run: Run,
    options: Annotated[
        list[str] | None, typer.Argument(help="of msrec evaluate: split=valid by=user_history")
    ] = None,
    on: On = "local",
    j: NodesAndRanks = "1x2",
    profiles: Profiles = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Score a split with a run's best checkpoint, and judge the scores."""
    from msrec.launch.cluster.job_specs import evaluate_spec

    _submit(evaluate_spec(run, options or []), on, j, profiles, dry_run, wait)


@launch_app.command()
def predict(
    run: Run,
    options: Annotated[
        list[str], typer.Argument(help="of msrec predict: data=FILES out=DIR columns=A,B")
    ],
    on: On = "local",
    j: NodesAndRanks = "1x2",
    profiles: Profiles = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Score the rows of any Parquet files with a run."""
    from msrec.launch.cluster.job_specs import predict_spec

    _submit(predict_spec(run, options), on, j, profiles, dry_run, wait)


@launch_app.command()
def pipeline(
    config: Config,
    overrides: Overrides = None,
    on: On = "local",
    j: NodesAndRanks = "1x2",
    profiles: Profiles = None,
    dry_run: DryRun = False,
) -> None:
    """Encode, train, evaluate on the test split, report; what is done is not done again."""
    from msrec.launch.cluster.pipeline import run_pipeline
    from msrec.launch.cluster.profiles import load_profile
    from msrec.launch.config import load_config
    from msrec.launch.console import wide_console

    resolved, profile = load_config(config, overrides or []), (on, load_profile(on, profiles))
    raise typer.Exit(run_pipeline(resolved, profile, j, wide_console(), dry_run=dry_run))


def _submit(
    work: "JobSpec", on: str, j: str, profiles: Path | None, dry_run: bool, wait: bool
) -> None:
    from msrec.launch.cluster.profiles import load_profile
    from msrec.launch.cluster.submit import launch
    from msrec.launch.console import wide_console

    profile = (on, load_profile(on, profiles))
    raise typer.Exit(launch(work, profile, j, wide_console(), dry_run=dry_run, wait=wait))


@launch_app.command("cancel")
def launch_cancel(run: JobFolder) -> None:
    """Ask a run to stop; it saves where it stands first."""
    from msrec.launch.cluster.submit import cancel

    typer.echo(cancel(run))


@launch_app.command("logs")
def launch_logs(
    run: JobFolder,
    rank: Annotated[int, typer.Option(min=0)] = 0,
    stream: Annotated[Literal["stderr", "stdout"], typer.Option()] = "stderr",
) -> None:
    """What a rank wrote in its last attempt."""
    from msrec.launch.cluster.status import log_file

    typer.echo(log_file(run, rank, stream).read_text(), nl=False)


@launch_app.command("status")
def launch_status(
    run: JobFolder,
) -> None:
    """How a run is: step, loss, speed, time left; each rank's last word; who hangs or is dead.

    Exit status 0 where the run goes on, is done or was stopped; 1 where something is wrong.
    """
    from msrec.launch.cluster.status import tell_status
    from msrec.launch.console import wide_console

    raise typer.Exit(tell_status(run, wide_console()).exit_status)
