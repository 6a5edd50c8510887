"""Records of trainings in a local folder, by torchx's tracker for fsspec."""

from pathlib import Path

import pytest
from torchx.tracker.api import AppRun
from torchx.tracker.backend.fsspec import create

from msrec.launch.config.run_config import load_config
from msrec.launch.job_tracker import JobTracker

# The module and function in place of the entry point.
NAME = "torchx.tracker.backend.fsspec:create"


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Function that tracks a start of a run as a torchx job; its `tracker` reads the records."""
    (tmp_path / "records").mkdir()
    settings = tmp_path / "tracker.conf"
    settings.write_text(f"protocol=file\nroot_path={tmp_path}/records\n")
    monkeypatch.setenv("TORCHX_TRACKERS", NAME)
    monkeypatch.setenv(f"TORCHX_TRACKER_{NAME.upper()}_CONFIG", str(settings))

    def track(job, *overrides, first_step=0):
        monkeypatch.setenv("TORCHX_JOB_ID", job)
        AppRun.run_from_env.cache_clear()
        config = load_config(None, [f"run_root={tmp_path}/runs", "dataset=data", *overrides])
        config.run_dir.mkdir(parents=True, exist_ok=True)
        return JobTracker(config, first_step, world_size=2), config

    track.tracker = create(str(settings))
    yield track
    AppRun.run_from_env.cache_clear()


def test_a_job_has_its_config_and_dataset_and_its_checkpoints(tracked):
    job, config = tracked("slurm://torchx/7", "run_id=first", "seed=3")
    values = tracked.tracker.metadata("slurm://torchx/7")
    assert values["config"] == config.model_dump(mode="json")
    assert (values["config"]["seed"], values["dataset"], values["world_size"]) == (3, "data", 2)
    assert Path(values["run_dir"]) == config.run_dir
    for step in (10, 20):
        job.record_checkpoint(config.run_dir / f"checkpoints/step-{step}", {"step": step})
    artifacts = tracked.tracker.artifacts("slurm://torchx/7")
    assert {name: a.metadata["step"] for name, a in artifacts.items()} == {
        "step-10": 10,
        "step-20": 20,
    }
    assert artifacts["step-20"].path == str(config.run_dir / "checkpoints/step-20")


def test_a_parent_is_the_job_that_trained_it_or_its_folder(tracked, tmp_path):
    _, parent = tracked("slurm://torchx/1", "run_id=parent")
    tracked("slurm://torchx/2", "run_id=child", f"init_from={parent.run_dir}")
    tracked("slurm://torchx/3", "run_id=grandchild", f"init_from={tmp_path}/elsewhere/a b")
    tracked("slurm://torchx/4", "run_id=child", first_step=9)

    def sources(job):
        return {(s.source_run_id, s.artifact_name) for s in tracked.tracker.sources(job)}

    assert sources("slurm://torchx/1") == set()
    assert sources("slurm://torchx/2") == {("slurm://torchx/1", "init_from")}
    assert sources("slurm://torchx/3") == {
        ((tmp_path / "elsewhere/a b").as_uri(), "init_from"),
    }
    assert sources("slurm://torchx/4") == {("slurm://torchx/2", "resumed")}
    assert tracked.tracker.metadata("slurm://torchx/4")["first_step"] == 9


def test_a_tracker_that_cannot_start_is_one_sentence_and_one_that_fails_later_a_warning(
    tracked, tmp_path, caplog
):
    job, config = tracked("slurm://torchx/7")
    records = tmp_path / "records"
    records.rename(tmp_path / "moved")
    records.write_text("no folder")
    job.record_checkpoint(config.run_dir, {"step": 1})
    assert "torchx's tracker did not record" in caplog.text
    records.unlink()
    with pytest.raises(ValueError, match=r"tracker .* must start; it does not: .*to exist"):
        tracked("slurm://torchx/8")


def test_without_trackers_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHX_TRACKERS", raising=False)
    config = load_config(None, [f"run_root={tmp_path}", "dataset=data"])
    job = JobTracker(config, 0, 1)
    job.record_checkpoint(tmp_path, {"step": 1})
    assert list(tmp_path.iterdir()) == []
