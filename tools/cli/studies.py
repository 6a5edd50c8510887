"""`msrec zoo`, `experiment`, `torture`, `demo` and `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from msrec.data.io.paths import local_path
from msrec.tools.cli.arguments import Device


def zoo(
    model: Annotated[
        str | None, typer.Argument(help="Model to describe in full: formula, options, source.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Markdown file to write with all models.")
    ] = None,
) -> None:
    """List the models, or describe one."""
    from msrec.tools.zoo import write_page
    from msrec.tools.zoo import zoo as print_models

    if page is not None:
        write_page(page)
    else:
        print_models(model)


def experiment(
    sweep: Annotated[Path, typer.Argument(help="YAML file of a sweep; see configs/experiment/.")],
    jobs: Annotated[int, typer.Option(min=1, help="Number of trainings at the same time.")] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check every config and list what is left to run."),
    ] = False,
) -> None:
    """Run a sweep: datasets x models x arms x seeds, with controls and paired tests; resumes.

    Writes report.md, report.html and results.parquet into the sweep's folder.
    """
    from msrec.tools.cli.terminal import say
    from msrec.tools.experiment.runner import run_sweep
    from msrec.tools.experiment.sweep import load_sweep
    from msrec.tools.experiment.sweep_report import check_sweep_report, write_sweep_report

    loaded = load_sweep(sweep)
    check_sweep_report(loaded)
    run_sweep(loaded, jobs, dry_run)
    if not dry_run:
        say(write_sweep_report(loaded, sweep))


def torture(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.", parser=local_path)],
    out: Annotated[
        Path, typer.Option(help="Folder for the runs; what an earlier call left there is deleted.")
    ] = Path("runs/torture"),
    kills: Annotated[int, typer.Option(min=1, help="Number of kills of each run.")] = 20,
    ranks: Annotated[
        str, typer.Option(help="Numbers of ranks, with commas; each alone, then mixed.")
    ] = "1,2,3",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the moments of the kills.")] = 0,
    commands: Annotated[
        str,
        typer.Option(
            help='Commands to kill while they write, with commas; "" kills training only.'
        ),
    ] = "convert,encode,export,evaluate,predict",
    command_kills: Annotated[
        int, typer.Option(min=1, help="Number of kills of each of these commands.")
    ] = 5,
) -> None:
    """Kill training and other commands, damage files, and count what is lost."""
    from msrec.tools.bench.harness.options import comma_list
    from msrec.tools.fault_injection.torture import torture as run

    numbers, names = comma_list("ranks", ranks, int), comma_list("commands", commands, str)
    if not numbers or min(numbers) < 1:
        raise ValueError(f"--ranks must be numbers of ranks, each at least 1; got {ranks!r}.")
    is_well = run(dataset, out, kills, numbers, seed, names, command_kills)
    raise typer.Exit(0 if is_well else 1)


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for data and runs.")] = Path("runs/demo"),
    device: Device = "auto",
) -> None:
    """Simulate, encode, train bare and with the LLM, compare: one table, one page.

    Runs on one rank per GPU, or on two ranks on the CPU.
    """
    from msrec.tools.demo import demo as run

    run(folder, device)


def doctor() -> None:
    """Check this machine and the torch / fbgemm / torchrec versions; name each fault's fix."""
    from msrec.tools.doctor import doctor as examine

    raise typer.Exit(examine())
