"""`msrec launch ...`: submits jobs on several ranks, shows their state and cancels them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msrec.data.io.paths import to_path
from msrec.tools.cli.arguments import Config, Overrides

if TYPE_CHECKING:
    from msrec.launch.cluster.job_specs import JobSpec
    from msrec.launch.cluster.profiles import Target

launch_app = typer.Typer(
    name="launch", help="Jobs on several ranks, here or on a cluster.", no_args_is_help=True
)

On = Annotated[
    str,
    typer.Option(
        "--on", help="profile: local, slurm, kubernetes, kuberay, aws_batch, ray, or yours"
    ),
]
Profiles = Annotated[
    Path | None, typer.Option(help="YAML file with your profiles, see launch/cluster/profiles.yaml")
]
NodesAndRanks = Annotated[str, typer.Option("-j", help="nodes x ranks per node")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be submitted and stop")]
Wait = Annotated[
    bool, typer.Option("--wait", help="wait until the job ends, as for local jobs always")
]


def _shared_path(text: str) -> Path:
    """Returns the folder of a run with its jobs.

    Raises:
        ValueError: it is remote.
    """
    path = to_path(text)
    if not isinstance(path, Path):
        raise ValueError(
            "the run of a job must be in a folder that this machine and those of the job share, "
            f"because its jobs and logs are in that folder; got {path}. A copy of a run needs no "
            f"job: msrec evaluate {path}"
        )
    return path


Run = Annotated[Path, typer.Argument(help="run folder, such as runs/demo", parser=_shared_path)]
JobFolder = Annotated[
    Path,
    typer.Argument(
        help="folder of a run, or of a job in it: runs/first/jobs/evaluate-test",
        parser=_shared_path,
    ),
]


def _add_config_command(job: Literal["train", "encode"], about: str) -> None:
    """Adds a command that submits a job with a config."""

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
        from msrec.launch.config.run_config import load_config

        make_spec = train_spec if job == "train" else encode_spec
        spec = make_spec(load_config(config, overrides or []))
        _submit(spec, _target(on, profiles, j), dry_run, wait)

    launch_app.command(job, help=about)(command)


_add_config_command(
    "train", "Train on several ranks, here or on a cluster; the same run_id resumes its run."
)
_add_config_command("encode", "Encode users and scenarios with the frozen LLM on several ranks.")


RawOptions = Annotated[
    list[str] | None,
    typer.Argument(
        help="options of `msrec convert tables`: split=time hash=user_id=100000 histories=true"
    ),
]


@launch_app.command()
def convert(
    raw: Annotated[
        Path,
        typer.Argument(
            help="folder with the raw tables, see the data contract; also s3://...", parser=to_path
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="dataset folder to make, also s3://...", parser=to_path)
    ],
    options: RawOptions = None,
    on: On = "local",
    j: NodesAndRanks = "1x2",
    profiles: Profiles = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Convert raw tables on several ranks; the same command goes on with the parts not done.

    All nodes must see RAW, OUT and the folder for the parts, beside OUT, under the same paths. If
    OUT is in an object store, work=... names that folder.
    """
    from msrec.data.io.outputs import DATASET, check_output
    from msrec.launch.cluster.job_specs import convert_spec
    from msrec.tools.cli.convert import words_of

    words = words_of(options or [])
    check_output(out, DATASET, [raw], overwrite="--overwrite" in words)
    spec = convert_spec(raw, out, words)
    _submit(spec, _target(on, profiles, j), dry_run, wait)


@launch_app.command()
def evaluate(
    run: Run,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="options of msrec evaluate: split=valid by=user_history"),
    ] = None,
    on: On = "local",
    j: NodesAndRanks = "1x2",
    profiles: Profiles = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Score a split with a run's best checkpoint and compute the metrics."""
    from msrec.launch.cluster.job_specs import evaluate_spec

    _submit(evaluate_spec(run, options or []), _target(on, profiles, j), dry_run, wait)


@launch_app.command()
def predict(
    run: Run,
    options: Annotated[
        list[str], typer.Argument(help="options of msrec predict: data=FILES out=DIR columns=A,B")
    ],
    on: On = "local",
    j: NodesAndRanks = "1x2",
    profiles: Profiles = None,
    dry_run: DryRun = False,
    wait: Wait = False,
) -> None:
    """Score the rows of any Parquet files with a run."""
    from msrec.launch.cluster.job_specs import predict_spec

    _submit(predict_spec(run, options), _target(on, profiles, j), dry_run, wait)


@launch_app.command()
def pipeline(
    config: Config,
    overrides: Overrides = None,
    raw: Annotated[
        Path | None,
        typer.Option(
            help="folder with raw tables, also s3://..., which the first stage converts",
            parser=to_path,
        ),
    ] = None,
    convert: Annotated[
        list[str] | None,
        typer.Option(help="with --raw: option of `msrec convert tables`; may be repeated"),
    ] = None,
    on: On = "local",
    j: NodesAndRanks = "1x2",
    profiles: Profiles = None,
    dry_run: DryRun = False,
) -> None:
    """Convert, encode, train, evaluate on the test split and report; resumes.

    Finished stages are not repeated. Without --raw, the dataset of the config must exist.
    """
    from msrec.launch.cluster.job_specs import convert_spec
    from msrec.launch.cluster.pipeline import run_pipeline
    from msrec.launch.config.run_config import load_config
    from msrec.launch.console import wide_console
    from msrec.tools.cli.convert import words_of

    resolved, target = load_config(config, overrides or []), _target(on, profiles, j)
    if convert and raw is None:
        raise ValueError("--convert needs --raw, the folder with the raw tables.")
    words = words_of(convert or [])
    conversion = None if raw is None else convert_spec(raw, resolved.dataset, words)
    raise typer.Exit(run_pipeline(resolved, target, wide_console(), conversion, dry_run=dry_run))


def _target(on: str, profiles: Path | None, j: str) -> "Target":
    from msrec.launch.cluster.profiles import Target, load_profile

    return Target(on, load_profile(on, profiles), j)


def _submit(spec: "JobSpec", target: "Target", dry_run: bool, wait: bool) -> None:
    from msrec.launch.cluster.submit import submit
    from msrec.launch.console import wide_console

    raise typer.Exit(submit(spec, target, wide_console(), dry_run=dry_run, wait=wait))


@launch_app.command("cancel")
def launch_cancel(run: JobFolder) -> None:
    """Ask a job to stop; it saves a checkpoint first."""
    from msrec.launch.cluster.submit import cancel
    from msrec.tools.cli.terminal import say

    say(cancel(run))


@launch_app.command("logs")
def launch_logs(
    run: JobFolder,
    rank: Annotated[int, typer.Option(min=0, help="rank number")] = 0,
    stream: Annotated[Literal["stderr", "stdout"], typer.Option(help="which output")] = "stderr",
) -> None:
    """Print the output of a rank in its last attempt."""
    from msrec.launch.cluster.status import log_text

    typer.echo(log_text(run, rank, stream), nl=False)


@launch_app.command("status")
def launch_status(run: JobFolder) -> None:
    """Show step, loss, speed and time left of a run, and the last report of each rank.

    Names ranks that are slow, hang or are dead. The exit status is 0 if the run continues, is done
    or was stopped, and 1 if something is wrong.
    """
    from msrec.launch.cluster.status import print_status
    from msrec.launch.console import wide_console

    raise typer.Exit(print_status(run, wide_console()).exit_status)
