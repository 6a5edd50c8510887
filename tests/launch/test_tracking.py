"""Tests of tracking: MLflow and TensorBoard get the values of the run's files."""

import pytest
from evaluated_runs import NAMES, make_run

from msrec.launch.evaluation.evaluate import write_tensorboard
from msrec.launch.evaluation.results import load_results, save_results
from msrec.launch.reporting.mlflow_tracking import track
from msrec.launch.training.metric_log import load_metric_log

pytestmark = pytest.mark.slow

mlflow = pytest.importorskip("mlflow.tracking", reason="mlflow-skinny is not installed")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A client of a store in a folder, which accepts what a server accepts."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient(tracking_uri=str(tmp_path / "mlruns"))


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path / "mine", 0.5, meta=True)
    save_results(load_results(run), run / "predictions/test")
    return run


def the_run(server, name="data"):
    [found] = server.search_runs([server.get_experiment_by_name(name).experiment_id])
    return found


def history(server, name):
    found = server.get_metric_history(the_run(server).info.run_id, name)
    return {metric.step: metric.value for metric in found}


def test_mlflow_has_the_curves_the_results_the_config_and_the_files(server, run):
    sentence = track(run, server.tracking_uri)
    log, results = load_metric_log(run), load_results(run)
    for split, metric in (("train", "loss"), ("valid", "auc/all")):
        steps, values = log.curve(split, metric)
        assert history(server, f"{split}/{metric}") == dict(zip(steps, values, strict=True))
    for name in NAMES:
        expected = {900: results.metrics.scenarios[name].log_loss}
        assert history(server, f"evaluated test/log_loss/scenario.{name}") == expected
    found = the_run(server)
    assert found.data.params["meta.user"] == "True"
    assert found.data.params["backbone.name"] == "shared_bottom"
    artifacts = {file.path for file in server.list_artifacts(found.info.run_id)}
    assert artifacts == {"config.yaml", "versions.json", "results.json"}
    count = sum(len(metrics) for steps in log.steps.values() for metrics in steps.values())
    assert f"{count + len(results.metrics.named()):,} of" in sentence


def test_a_second_call_sends_only_new_values_to_the_same_run(server, run):
    track(run, server.tracking_uri)
    assert ": 0 of " in track(run, server.tracking_uri)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 950, "split": "train", "metrics": {"loss": 0.25}}\n')
    assert ": 1 of " in track(run, server.tracking_uri)
    assert history(server, "train/loss")[950] == 0.25
    assert len(history(server, "train/loss")) == 19


def test_another_experiment_and_refusals(server, run, tmp_path, monkeypatch):
    track(run, server.tracking_uri, "ads")
    assert the_run(server, "ads").info.run_name == "mine"
    with pytest.raises(FileNotFoundError, match="must be a run folder"):
        track(tmp_path, server.tracking_uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match="MLflow at http://127.0.0.1:9 must take the run"):
        track(run, "http://127.0.0.1:9")


def test_tensorboard_has_the_results(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = load_results(run)
    write_tensorboard(results, run)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    [point] = events.Scalars("evaluated test/auc/all")
    assert point.step == 900
    assert point.value == pytest.approx(results.metrics.all.auc, abs=1e-6)
