"""What `msrec launch` submits: a command for every rank, and the folder that keeps the job."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msrec.data.io.paths import refuse_secrets
from msrec.launch.cluster.job_options import EVALUATE, PREDICT, read_options
from msrec.launch.config import RunConfig, save_config
from msrec.launch.trained_run import load_run_config

Job = Literal["train", "encode", "evaluate", "predict"]
CONFIG_FILE = "submitted.yaml"
JOBS = "jobs"
"""Where a run's folder keeps the jobs that are not its training."""


@dataclass(frozen=True)
class JobSpec:
    """One job.

    Attributes:
        job: the msrec command.
        args: its arguments.
        folder: keeps what was submitted and what every rank wrote.
        config: to be written beside, resolved now; a change of its file does not reach a job that
            waits or comes again.
    """

    job: Job
    args: tuple[str, ...]
    folder: Path
    config: RunConfig | None = None

    def prepare(self) -> None:
        """Make the folder and write the config."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            save_config(self.config, self.folder / CONFIG_FILE)


def train_spec(config: RunConfig) -> JobSpec:
    """Train a run; its folder is the job's."""
    return _of_config("train", config, config.run_dir)


def encode_spec(config: RunConfig) -> JobSpec:
    """Encode users and scenarios for a run."""
    return _of_config("encode", config, config.run_dir / JOBS / "encode")


def evaluate_spec(run_dir: Path, options: Sequence[str]) -> JobSpec:
    """Evaluate a run.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: an option is unknown.
    """
    load_run_config(run_dir)
    return planned_evaluate_spec(run_dir, options)


def planned_evaluate_spec(run_dir: Path, options: Sequence[str]) -> JobSpec:
    """The same of a run that is still to be trained."""
    known = read_options(options, EVALUATE)
    name = f"evaluate-{known.get('split', 'test')}"
    return JobSpec("evaluate", (str(run_dir.absolute()), *options), run_dir / JOBS / name)


def predict_spec(run_dir: Path, options: Sequence[str]) -> JobSpec:
    """Score files with a run; one folder for each output folder's name.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: an option is unknown or missing.
    """
    load_run_config(run_dir)
    known = read_options(options, PREDICT)
    refuse_secrets("an option", list(options))
    for name in ("data", "out"):
        if name not in known:
            raise ValueError(f"msrec launch predict needs {name}=...; it is not given.")
    folder = run_dir / JOBS / f"predict-{Path(known['out']).name}"
    return JobSpec("predict", (str(run_dir.absolute()), *options), folder)


def _of_config(job: Job, config: RunConfig, folder: Path) -> JobSpec:
    return JobSpec(job, (str((folder / CONFIG_FILE).absolute()),), folder, config)
