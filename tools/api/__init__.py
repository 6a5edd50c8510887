"""Multi-scenario recommendation on TorchRec with a frozen LLM in the loop.

This module is the Python API. The commands of the CLI call the same functions::

    import msrec

    msrec.convert("tables", "raw", "data/app")
    bare = msrec.train("conf.yaml", ["run_id=bare"])
    star = msrec.train("conf.yaml", ["run_id=star", "backbone.name=star"])
    for run in (bare, star):
        print(msrec.evaluate(run.folder).metrics.all.auc)
    print(msrec.verdict(msrec.compare(bare.folder, star.folder)))

Heavy libraries are imported by the first function that needs them, not by `import msrec`. Under
torchrun every rank calls the same function; only rank 0 gets the result where a function may
return None.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrec.data.io.paths import AnyPath, local_path, to_path

if TYPE_CHECKING:
    from msrec.data.loading.batch import Batch
    from msrec.data.schema import Schema, Split
    from msrec.launch.calibration.calibration_file import Calibration, Method
    from msrec.launch.config.run_config import Device, RunConfig
    from msrec.launch.encoding.encode import EncodeResult
    from msrec.launch.evaluation.compare import Comparison
    from msrec.launch.evaluation.predict_files import PredictionSummary
    from msrec.launch.evaluation.results import Results
    from msrec.launch.explanations.explanation_file import ScenarioExplanation, UserExplanation
    from msrec.launch.training.metric_log import MetricLog
    from msrec.tools.planner.plan import Plan

__all__ = [
    "Dataset",
    "Explanation",
    "Run",
    "Training",
    "calibrate",
    "compare",
    "convert",
    "encode",
    "evaluate",
    "explain",
    "load_config",
    "load_dataset",
    "open_run",
    "plan",
    "predict",
    "report",
    "synthetic",
    "train",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("msrec")
    raise AttributeError(f"module 'msrec' has no attribute {name!r}")


@dataclass(frozen=True)
class Dataset:
    """A dataset folder.

    Attributes:
        folder: on this machine, or a URL such as `s3://bucket/app`.
        schema: what `dataset.yaml` says: scenarios, features, tables, labels, counts.
    """

    folder: str
    schema: "Schema"

    def batches(
        self,
        split: "Split",
        rows: int,
        *,
        epoch: int = 0,
        seed: int = 0,
        shuffle: bool = True,
    ) -> "Iterator[Batch]":
        """Yields the batches of an epoch, in the order that training on one rank reads them.

        Args:
            split: "train", "valid" or "test".
            rows: of a batch; the last one is padded with rows of weight 0.
            epoch: number of the epoch, from 0.
            seed: of the shuffle.
            shuffle: False keeps the order of the files.
        """
        from msrec.data.loading.loader import open_loader

        loader = open_loader(self.folder, split, rows, seed=seed, shuffle=shuffle)
        return loader.batches(epoch)


@dataclass(frozen=True)
class Run:
    """A run folder: a config, checkpoints, logs, and results where it was evaluated."""

    folder: Path

    @cached_property
    def config(self) -> "RunConfig":
        """The config that the run was trained with."""
        from msrec.launch.trained_run import load_run_config

        return load_run_config(self.folder)

    @property
    def log(self) -> "MetricLog":
        """Metrics logged so far; `log.curve("valid", "auc/all")` gives steps and values."""
        from msrec.launch.training.metric_log import load_metric_log

        return load_metric_log(self.folder)

    def results(self, split: "Split" = "test") -> "Results":
        """Returns the results of the last evaluation of a split.

        Raises:
            FileNotFoundError: the run was not evaluated on it.
        """
        from msrec.launch.evaluation.evaluate import predictions_folder
        from msrec.launch.evaluation.results import load_results

        return load_results(predictions_folder(self.folder, split))


@dataclass(frozen=True)
class Training(Run):
    """A run after training.

    Attributes:
        steps: steps trained so far, those of earlier calls included.
        metric: metric of the validation that chooses the best checkpoint, such as `auc/all`.
        best_value: its value for the best checkpoint; None if there was no validation.
        best_step: step of that checkpoint.
        rows_per_s: training rows per second of this call, without validation; 0 if it had no step.
        preempted: whether SIGTERM ended the call; the same call continues.
    """

    steps: int
    metric: str
    best_value: float | None
    best_step: int | None
    rows_per_s: float
    preempted: bool


@dataclass(frozen=True)
class Explanation:
    """Effect of the LLM's knowledge in a run.

    Attributes:
        users: scores of a user's rows with and without the generated layers.
        scenarios: similarity of the scenarios' generated layers; None if it was not asked for.
    """

    users: list["UserExplanation"]
    scenarios: "ScenarioExplanation | None"


def convert(source: str, raw: str | Path, out: str | Path, **options: Any) -> Dataset:
    """Converts a raw data set to a dataset folder.

    Args:
        source: "tables" for your own files, or a public data set: "amazon", "movielens",
            "kuairand", "kuaisar", "douban", "aliccp".
        raw: folder of the raw files; for "tables" also a URL such as `s3://bucket/raw`.
        out: folder to write, also a URL.
        options: as the options of `msrec convert SOURCE`, with underscores.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file, row or option is wrong; names file, column and row.
    """
    from rich.console import Console

    from msrec.tools.convert import convert as convert_source
    from msrec.tools.convert import split_choice, tables_by_option, workers_by_option

    def given(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names if name in options}

    split = given("protocol", "split", "seed", "fractions", "last", "split_column")
    workers = given("engine", "workers", "address", "part_rows", "work")
    convert_source(
        source,
        raw,
        out,
        choice=split_choice(source, **split),
        table_kinds=tables_by_option(**given("hash", "managed", "min_rows")),
        workers=workers_by_option(**workers),
        console=Console(quiet=True),
        **options,
    )
    return load_dataset(out)


def synthetic(out: str | Path, **options: Any) -> Dataset:
    """Simulates a short-video app whose best possible AUC is known.

    Args:
        out: folder to write.
        options: rows, users, items, seed, cold_fraction, overwrite.
    """
    from msrec.data.synthetic.simulated_dataset import synthesize

    synthesize(local_path(out), **options)
    return load_dataset(out)


def load_dataset(folder: str | Path) -> Dataset:
    """Opens a dataset folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: `dataset.yaml` is not valid; names the field.
    """
    from msrec.data.schema import load_schema

    return Dataset(str(folder), load_schema(str(folder)))


def load_config(config: str | Path, overrides: Sequence[str] = ()) -> "RunConfig":
    """Reads a run's YAML file and applies `key.sub=value` overrides.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a key is unknown (the nearest known ones are named) or a value is invalid.
    """
    from msrec.launch.config.run_config import load_config as load

    return load(config, overrides)


def encode(config: str | Path, overrides: Sequence[str] = ()) -> "EncodeResult | None":
    """Encodes users and scenarios (and items, with `llm.items`) into the knowledge store.

    Resumes after a kill. Under torchrun, rank 0 hands out blocks of keys; the other ranks return
    None.

    Args:
        config: a run's YAML file; `llm.store` names the folder to write.
        overrides: `key.sub=value`.
    """
    from msrec.launch.encoding.job import encode_config

    return encode_config(load_config(config, overrides))


def train(
    config: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    evaluate: bool = False,
) -> Training:
    """Trains a run, or continues it: the same run_id resumes from its newest checkpoint.

    Args:
        config: a run's YAML file; None goes on from the run that `init_from` names, with its config
            and optimizer state, in a new run that is named after `data`.
        overrides: `key.sub=value`.
        data: the dataset folder to train on, in place of the config's.
        evaluate: evaluate the run afterwards as `msrec.evaluate` does, in the same process; the
            results are in the run folder. A run that SIGTERM stops is not evaluated.

    Raises:
        FileNotFoundError, ValueError: the config, the data, the knowledge store or a checkpoint is
            missing or does not fit.
    """
    from msrec.data.io.local_copies import require_one_host
    from msrec.launch.daily.next_day import training_config
    from msrec.launch.distributed import process_group
    from msrec.launch.training.trainer import run_store, train_run

    path = None if config is None else local_path(config)
    resolved = training_config(path, overrides, None if data is None else str(data))
    if evaluate and resolved.trainer.copy_to is not None:
        require_one_host(resolved.trainer.copy_to)
    with process_group(resolved.device) as process:
        result = train_run(resolved, process)
        if evaluate and not result.preempted:
            from msrec.launch.evaluation.evaluate import evaluate as evaluate_run

            evaluate_run(resolved.run_dir, process)
            if (store := run_store(resolved, process)) is not None:
                store.finish()
    progress = result.progress
    return Training(
        folder=resolved.run_dir,
        steps=progress.step,
        metric=progress.metric,
        best_value=progress.best_value,
        best_step=progress.best_step,
        rows_per_s=result.rows_per_s if result.losses else 0.0,
        preempted=result.preempted,
    )


def plan(
    source: str | Path,
    overrides: Sequence[str] = (),
    *,
    nodes: int = 1,
    gpus_per_node: int | None = None,
    gpu: str = "h100",
    batch: int | None = None,
    out: str | Path | None = None,
) -> "Plan":
    """Places embedding tables on GPUs and estimates memory and step time; needs no GPU.

    Args:
        source: a run's YAML file, or a list of tables: YAML or CSV.
        overrides: `key.sub=value`, for a run's YAML file.
        nodes: number of nodes.
        gpus_per_node: ranks per node; None is those of `gpu`, 8 or 72 (NVL72).
        gpu: accelerator, one of tools/planner/hardware.yaml, such as "a100-80" or "gb200".
        batch: rows of a step on one rank; None is that of the config, or 4096.
        out: file to write, for `train(config, ["plan=FILE"])`; a plan that does not fit is not
            written.

    Returns:
        The plan. `fits`, `step_ms`, `peak_memory` and `tables` say the result.

    Raises:
        FileNotFoundError, ValueError: the source or an option is invalid.
    """
    from msrec.data.io.atomic_files import write_text
    from msrec.data.io.outputs import check_output
    from msrec.tools.planner.command.build_request import request_from_options
    from msrec.tools.planner.command.plan_file import PLAN
    from msrec.tools.planner.command.plan_options import PlanOptions
    from msrec.tools.planner.search.make_plan import make_plan

    if out is not None:
        check_output(local_path(out), PLAN, [local_path(source)])
    options = PlanOptions(
        local_path(source),
        list(overrides),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu=gpu,
        batch=batch,
    )
    made = make_plan(request_from_options(options))
    if out is not None and made.fits:
        write_text(local_path(out), made.model_dump_json(indent=1) + "\n")
    return made


def open_run(folder: str | Path) -> Run:
    """Opens a run folder.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    from msrec.launch.checkpointing.remote_runs import local_run

    run = Run(local_run(to_path(folder)))
    _ = run.config
    return run


def evaluate(
    run: str | Path,
    split: "Split" = "test",
    *,
    by: Sequence[str] = (),
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
    k: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    device: "Device" = "auto",
) -> "Results | None":
    """Scores a split with a run's best checkpoint and computes exact metrics.

    Args:
        run: a run folder, or a checkpoint in one.
        split: "train", "valid" or "test".
        by: slices in addition to scenarios: "day", "user_history", "item_history".
        data: another dataset folder; its ids are matched by value.
        checkpoint: other weights than those with the best validation.
        k: number of places of NDCG and recall.
        resamples: bootstrap resamples of the users for 95 % intervals; 0 computes none.
        seed: of the resamples.
        device: "cpu", "cuda", or "auto", which takes a GPU if torch and fbgemm can use one.

    Returns:
        The results, which are also saved in the run folder; None on other ranks than 0.
    """
    from msrec.launch.checkpointing.remote_runs import changed_run
    from msrec.launch.distributed import process_group
    from msrec.launch.evaluation.evaluate import evaluate as evaluate_run
    from msrec.launch.evaluation.slices import check_slices
    from msrec.model.metrics.exact import MetricOptions

    scored = None if data is None else to_path(str(data))
    path = None if checkpoint is None else to_path(checkpoint)
    slices, options = check_slices(by), MetricOptions(k, resamples, seed)
    with process_group(device) as process, changed_run(run) as folder:
        return evaluate_run(folder, process, split, path, slices, scored, options)


def calibrate(
    run: str | Path, method: "Method" = "isotonic", *, device: "Device" = "auto"
) -> "Calibration | None":
    """Fits the predicted probabilities to the validation split, per scenario and binary label.

    Scores the validation and the test split, and writes `calibration.json` in the run folder.
    `evaluate`, `predict` and an export of the checkpoint apply it.

    Args:
        run: a run folder.
        method: "isotonic" or "platt".
        device: see `evaluate`.

    Returns:
        The maps, and the calibration errors before and after; None on other ranks than 0.
    """
    from msrec.launch.checkpointing.remote_runs import changed_run
    from msrec.launch.distributed import process_group
    from msrec.launch.evaluation.calibrate import calibrate as calibrate_run

    with process_group(device) as process, changed_run(run) as folder:
        return calibrate_run(folder, process, method)


def compare(
    first: str | Path,
    second: str | Path,
    split: "Split" = "test",
    *,
    data: str | Path | None = None,
    k: int = 10,
    any_protocol: bool = False,
) -> "Comparison":
    """Compares two evaluated runs on the same rows: paired differences over users.

    Args:
        first: the reference: an evaluated run, a checkpoint, or a folder of predictions.
        second: another one.
        split: "train", "valid" or "test".
        data: the dataset folder on which both were evaluated, if not their own.
        k: number of places of NDCG and recall.
        any_protocol: also compare runs whose histories have different protocols.

    Raises:
        FileNotFoundError: one was not evaluated.
        ValueError: they did not score the same rows, or with histories of different protocols.
    """
    from msrec.launch.evaluation.compare import compare_runs

    scored = None if data is None else to_path(str(data))
    return compare_runs(
        to_path(first), to_path(second), split, scored, k, any_protocol=any_protocol
    )


def verdict(comparison: "Comparison", metric: str | None = None, label: str | None = None) -> str:
    """Returns the result of a comparison in one sentence that may be quoted.

    Args:
        comparison: of two runs.
        metric: "auc", "log_loss", "ne", "rig", "average_precision", "gauc", "gauc_by_user", "ndcg",
            "recall", "gauc_by_impression" or "ndcg_by_impression"; "rmse", "mae" or "spearman" of a
            regression label. None means AUC, of a regression label RMSE.
        label: name of the label; None means the first one.
    """
    from msrec.launch.reporting.difference_table import verdict as sentence

    return sentence(comparison, metric, label)


def predict(
    run: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    columns: Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    dataset: str | Path | None = None,
    device: "Device" = "auto",
) -> "PredictionSummary | None":
    """Scores the rows of Parquet files: as many rows out as in, in order. Resumes after a kill.

    Args:
        run: a run folder.
        data: Parquet files or folders, of raw values or of ids as in the run's dataset.
        out: folder to write.
        columns: to keep in addition to the score; None keeps user, item and scenario.
        checkpoint: other weights than those with the best validation.
        dataset: the dataset folder whose ids the files have, if not the run's.
        device: see `evaluate`.

    Returns:
        Counts of what was scored; None on other ranks than 0.
    """
    from msrec.data.io.outputs import check_output
    from msrec.launch.distributed import exclusive_job, process_group
    from msrec.launch.evaluation.predict_files import PREDICTED, REQUEST_FILE, predict_files
    from msrec.launch.trained_run import open_run as open_trained_run
    from msrec.launch.trained_run import run_inputs

    files = [data] if isinstance(data, str | Path) else data
    paths = [to_path(str(file)) for file in files]
    target = to_path(str(out))
    weights = None if checkpoint is None else to_path(checkpoint)
    scored = None if dataset is None else to_path(str(dataset))
    check_output(target, PREDICTED, [*paths, scored, weights, *run_inputs(to_path(run))])
    with process_group(device) as process, exclusive_job(target, "written", REQUEST_FILE):
        opened = open_trained_run(to_path(run), process, weights, scored)
        kept = None if columns is None else list(columns)
        return predict_files(opened, process, paths, target, kept)


def explain(
    run: str | Path,
    users: Sequence[str] = (),
    *,
    scenarios: bool = False,
    split: "Split" = "test",
    label: str | None = None,
) -> Explanation:
    """Explains the effect of the LLM's knowledge in a run, for users and between scenarios.

    The explanations are also saved in the run folder, where `report` finds them.

    Args:
        run: a run folder, trained with meta networks or interest blocks.
        users: raw keys.
        scenarios: whether to compare the scenarios.
        split: the rows of the users that are scored.
        label: label whose scores are explained; None is the first label of the run.
    """
    from msrec.launch.checkpointing.remote_runs import changed_run
    from msrec.launch.explanations.explain import explanations
    from msrec.launch.explanations.explanation_file import UserExplanation

    of_users: list[UserExplanation] = []
    of_scenarios = None
    with changed_run(run) as folder:
        for explained in explanations(folder, users, scenarios=scenarios, split=split, label=label):
            if isinstance(explained, UserExplanation):
                of_users.append(explained)
            else:
                of_scenarios = explained
    return Explanation(of_users, of_scenarios)


def report(out: str | Path, runs: "Mapping[str, str | AnyPath]") -> Path:
    """Writes one self-contained HTML page over evaluated runs; the first is the reference.

    Args:
        out: the file to write.
        runs: name on the page -> run folder, local or remote.
    """
    from msrec.launch.reporting.report import write_report

    return write_report(out, runs)
