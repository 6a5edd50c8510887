"""A run's numbers in MLflow and TensorBoard: the same that its own files hold."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msrec.data.io.atomic_files import write_json
from msrec.launch.evaluation.results import RESULTS_FILE, load_results
from msrec.launch.evaluation.tensorboard import Value, result_values
from msrec.launch.trained_run import load_run_config
from msrec.launch.training.metric_log import load_metric_log

TRACKED_FILE = "mlflow.json"
ARTIFACTS = ("config.yaml", "plan.json", "versions.json", RESULTS_FILE, "report.html")
BATCH = 1000
"""Metrics of one request, MLflow's limit; it takes 100 parameters."""
PARAMETERS = 100
LONGEST = 6000
"""Characters of a parameter's value."""


def track(run_dir: Path, uri: str, experiment: str | None = None) -> str:
    """Bring a run to MLflow; called again, it adds what is new to the same MLflow run.

    Training does not wait for a server, nor fail with one: `metrics.jsonl` is written first, and
    `mlflow.json` in the run's folder keeps which of its values the server has.

    Args:
        run_dir: a run folder.
        uri: of the tracking server, or of a database, as MLflow takes it.
        experiment: MLflow's name for a group of runs; None takes that of the dataset.

    Returns:
        A sentence on what was sent.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: MLflow is not installed, cannot be reached, or refuses.
    """
    config = load_run_config(run_dir)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ValueError('msrec track needs MLflow: pip install "msrec[mlflow]".') from None
    values = list(_values(run_dir))
    try:
        client = MlflowClient(tracking_uri=uri)
        known = _known(run_dir, uri)
        if known is None:
            name = experiment or config.dataset.name
            found = client.get_experiment_by_name(name)
            number = found.experiment_id if found else client.create_experiment(name)
            run = client.create_run(number, run_name=config.run_id)
            known = {"uri": uri, "run": run.info.run_id, "sent": {}}
            write_json(run_dir / TRACKED_FILE, known)
            _send_parameters(client, known["run"], config.model_dump(mode="json"))
        new = [value for value in values if value[2] > known["sent"].get(value[0], -1)]
        for start in range(0, len(new), BATCH):
            _send(client, known["run"], new[start : start + BATCH])
        for name in ARTIFACTS:
            if (run_dir / name).is_file():
                client.log_artifact(known["run"], str(run_dir / name))
    except MlflowException as error:
        raise ValueError(f"MLflow at {uri} must take the run; {error.message}") from None
    # A resumed run logs some steps again; its numbers are the same.
    for name, _, step in values:
        known["sent"][name] = max(step, known["sent"].get(name, -1))
    write_json(run_dir / TRACKED_FILE, known)
    return f"{run_dir}: {len(new):,} of {len(values):,} values sent to run {known['run']} at {uri}"


def _values(run_dir: Path) -> Iterator[Value]:
    log = load_metric_log(run_dir)
    for split, steps in log.steps.items():
        for step, metrics in sorted(steps.items()):
            for name, value in metrics.items():
                yield f"{split}/{name}", value, step
    for file in sorted(run_dir.glob(f"predictions/*/{RESULTS_FILE}")):
        yield from result_values(load_results(file.parent))


def _known(run_dir: Path, uri: str) -> dict[str, Any] | None:
    file = run_dir / TRACKED_FILE
    if not file.is_file():
        return None
    known: dict[str, Any] = json.loads(file.read_text())
    return known if known["uri"] == uri else None


def _send(client: Any, run: str, values: list[Value]) -> None:
    from mlflow.entities import Metric

    # MLflow's names have no equals sign.
    metrics = [
        Metric(name.replace("=", "."), value, timestamp=step, step=step)
        for name, value, step in values
    ]
    client.log_batch(run, metrics=metrics)


def _send_parameters(client: Any, run: str, config: dict[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, str(value)[:LONGEST]) for name, value in _flat(config)]
    for start in range(0, len(flat), PARAMETERS):
        client.log_batch(run, params=flat[start : start + PARAMETERS])


def _flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value
