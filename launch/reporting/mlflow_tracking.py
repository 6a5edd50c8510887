"""Sends the config, curves and results of a run to MLflow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msrec.data.io.atomic_files import write_json
from msrec.data.io.json_files import read_json_object
from msrec.data.io.paths import refuse_secrets
from msrec.launch.evaluation.results import RESULTS_FILE, LoggedValue, load_results
from msrec.launch.trained_run import load_run_config
from msrec.launch.training.metric_log import load_metric_log

TRACKED_FILE = "mlflow.json"
ARTIFACTS = ("config.yaml", "plan.json", "versions.json", RESULTS_FILE, "report.html")
METRICS_PER_REQUEST, PARAMETERS_PER_REQUEST = 1000, 100
"""Limits of MLflow."""
MAX_PARAMETER_CHARS = 6000


def track(run_dir: Path, uri: str, experiment: str | None = None) -> str:
    """Sends a run to MLflow. A later call adds what is new to the same MLflow run.

    Training does not wait for a server and does not fail with it: it only writes `metrics.jsonl`.
    `mlflow.json` in the run folder records which values the server has.

    Args:
        run_dir: a run folder.
        uri: a tracking server or a database, as MLflow takes it.
        experiment: MLflow's name for a group of runs; None means the name of the dataset.

    Returns:
        A sentence on what was sent.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: MLflow is not installed, cannot be reached, or refuses.
    """
    refuse_secrets("--mlflow", uri)
    config = load_run_config(run_dir)
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ValueError('msrec track needs MLflow: pip install "msrec[mlflow]".') from None
    values = list(_values(run_dir))
    try:
        client = MlflowClient(tracking_uri=uri)
        state = _load_state(run_dir, uri)
        if state is None:
            run_id = _create_run(client, experiment or config.dataset.name, config.run_id)
            state = {"uri": uri, "run": run_id, "sent": {}}
            write_json(run_dir / TRACKED_FILE, state)
            _send_parameters(client, run_id, config.model_dump(mode="json"))
        new = [value for value in values if value[2] > state["sent"].get(value[0], -1)]
        _send_metrics(client, state["run"], new)
        for name in ARTIFACTS:
            if (run_dir / name).is_file():
                client.log_artifact(state["run"], str(run_dir / name))
    except MlflowException as error:
        raise ValueError(f"MLflow at {uri} must take the run; {error.message}") from None
    # A resumed run logs some steps again, with the same values.
    for name, _, step in values:
        state["sent"][name] = max(step, state["sent"].get(name, -1))
    write_json(run_dir / TRACKED_FILE, state)
    return f"{run_dir}: {len(new):,} of {len(values):,} values sent to run {state['run']} at {uri}"


def _values(run_dir: Path) -> Iterator[LoggedValue]:
    log = load_metric_log(run_dir)
    for split, steps in log.steps.items():
        for step, metrics in sorted(steps.items()):
            for name, value in metrics.items():
                yield f"{split}/{name}", value, step
    for file in sorted(run_dir.glob(f"predictions/*/{RESULTS_FILE}")):
        yield from load_results(file.parent).logged_values()


def _load_state(run_dir: Path, uri: str) -> dict[str, Any] | None:
    """Returns the MLflow run of an earlier call and what it has; None on another server."""
    file = run_dir / TRACKED_FILE
    if not file.is_file():
        return None
    state: dict[str, Any] = read_json_object(file)
    return state if state["uri"] == uri else None


def _create_run(client: Any, experiment: str, run_name: str) -> str:
    known = client.get_experiment_by_name(experiment)
    number = known.experiment_id if known else client.create_experiment(experiment)
    run_id: str = client.create_run(number, run_name=run_name).info.run_id
    return run_id


def _send_metrics(client: Any, run_id: str, values: list[LoggedValue]) -> None:
    from mlflow.entities import Metric

    # MLflow's names have no equals sign.
    metrics = [
        Metric(name.replace("=", "."), value, timestamp=step, step=step)
        for name, value, step in values
    ]
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])


def _send_parameters(client: Any, run_id: str, config: dict[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, str(value)[:MAX_PARAMETER_CHARS]) for name, value in _flattened(config)]
    for start in range(0, len(flat), PARAMETERS_PER_REQUEST):
        client.log_batch(run_id, params=flat[start : start + PARAMETERS_PER_REQUEST])


def _flattened(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
