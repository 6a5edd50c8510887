"""Jobs that `msrec launch` submits: a command, its arguments and the folder of the job."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msrec.data.io.paths import AnyPath, refuse_secrets
from msrec.launch.cluster.submitted import Job
from msrec.launch.config.run_config import RunConfig, check_run_folder, save_config
from msrec.launch.trained_run import load_run_config

CONFIG_FILE = "submitted.yaml"
ON_RAY = ("--engine=ray", "--address=auto")
"""Options of a command on a node of a Ray cluster; Ray knows the address of its own cluster."""
JOBS_FOLDER = "jobs"
"""Subfolder of a run for its jobs other than training."""
EVALUATE_OPTIONS = frozenset({"split", "checkpoint", "by", "data", "device"})
PREDICT_OPTIONS = frozenset({"data", "out", "columns", "checkpoint", "dataset", "device"})


@dataclass(frozen=True)
class JobSpec:
    """A job: an msrec command, its arguments and its folder.

    Attributes:
        job: the msrec command.
        args: arguments of the command.
        folder: folder for what was submitted and for the output of the ranks.
        config: resolved config, saved in `folder` for the ranks to read. Later changes of the
            user's file do not reach a job that waits in a queue or is retried.
        ray_args: arguments of the command on a node of a Ray cluster, where it runs once and uses
            the other nodes through Ray; None if it cannot.
    """

    job: Job
    args: tuple[str, ...]
    folder: Path
    config: RunConfig | None = None
    ray_args: tuple[str, ...] | None = None

    def prepare(self) -> None:
        """Makes the folder and writes the config."""
        if self.config is not None:
            check_run_folder(self.config)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            save_config(self.config, self.folder / CONFIG_FILE)


def train_spec(config: RunConfig) -> JobSpec:
    """Returns the training of a run. Its folder is the run's folder."""
    return _spec_with_config("train", config, config.run_dir)


def encode_spec(config: RunConfig) -> JobSpec:
    """Returns the encoding of users and scenarios for a run."""
    spec = _spec_with_config("encode", config, config.run_dir / JOBS_FOLDER / "encode")
    return replace(spec, ray_args=(*spec.args, *ON_RAY))


def evaluate_spec(run_dir: Path, options: Sequence[str], *, is_trained: bool = True) -> JobSpec:
    """Returns the evaluation of a run.

    Args:
        run_dir: run folder.
        options: `key=value` options of `msrec evaluate`.
        is_trained: False if the run will be trained before this job starts.

    Raises:
        FileNotFoundError: `is_trained` and there is no run in the folder.
        ValueError: an option is unknown.
    """
    if is_trained:
        load_run_config(run_dir)
    split = read_options(options, EVALUATE_OPTIONS).get("split", "test")
    folder = run_dir / JOBS_FOLDER / f"evaluate-{split}"
    return JobSpec("evaluate", (str(run_dir.absolute()), *options), folder)


def predict_spec(run_dir: Path, options: Sequence[str]) -> JobSpec:
    """Returns the scoring of files with a run, with one job folder per name of an output folder.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: an option is unknown or missing.
    """
    load_run_config(run_dir)
    values = read_options(options, PREDICT_OPTIONS)
    for name in ("data", "out"):
        if name not in values:
            raise ValueError(f"msrec launch predict needs {name}=...; it is not given.")
    folder = run_dir / JOBS_FOLDER / f"predict-{Path(values['out']).name}"
    return JobSpec("predict", (str(run_dir.absolute()), *options), folder)


def convert_spec(raw: AnyPath, out: AnyPath, words: Sequence[str]) -> JobSpec:
    """Returns the conversion of plain tables. The job's folder is `OUT.job`, beside the dataset.

    Args:
        raw: folder of the tables, remote or on a file system that all nodes share, like `out`.
        out: dataset folder to make. If it is remote, the job's folder is beside that of the parts.
        words: options of `msrec convert tables`.

    Raises:
        FileNotFoundError: there is no such folder of tables.
        ValueError: `out` is remote, and the options have no folder for the parts.
    """
    if isinstance(raw, Path) and not raw.is_dir():
        raise FileNotFoundError(f"{raw} must be a folder with the raw tables; there is none.")
    folders = (str(raw.absolute()), str(out.absolute()))
    args = ("tables", *folders, "--engine=ranks", *words)
    ray_args = ("tables", *folders, *ON_RAY, *words)
    place = out if isinstance(out, Path) else _work_folder(words, out)
    return JobSpec("convert", args, place.with_name(f"{out.name}.job"), ray_args=ray_args)


def _work_folder(words: Sequence[str], out: AnyPath) -> Path:
    work = [word.removeprefix("--work=") for word in words if word.startswith("--work=")]
    if not work:
        raise ValueError(
            f"work=... must name a folder for the parts that all nodes share, because {out} is in "
            "an object store; it is not given."
        )
    return Path(work[-1]).absolute()


def read_options(options: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Returns `key=value` options by name; of a repeated one, the last value.

    Raises:
        ValueError: an option is unknown, has another form or has credentials.
    """
    return dict(option_pairs(options, known))


def option_pairs(options: Sequence[str], known: Collection[str]) -> list[tuple[str, str]]:
    """Returns (key, value) of `key=value` options. Not `--key`: torchx refuses to pass one twice.

    Raises:
        ValueError: an option is unknown, has another form or has credentials.
    """
    pairs = []
    refuse_secrets("an option", list(options))
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in known:
            names = ", ".join(sorted(known))
            raise ValueError(f"{option!r} is not known here; known are {names}=...")
        pairs.append((key, value))
    return pairs


def _spec_with_config(job: Job, config: RunConfig, folder: Path) -> JobSpec:
    return JobSpec(job, (str((folder / CONFIG_FILE).absolute()),), folder, config)
