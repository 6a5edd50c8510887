"""`msrec launch pipeline`: the order of its jobs, its record, and how it continues."""

import io
import json

import pytest
from rich.console import Console
from tiny import tiny_dataset

from msrec.launch.cluster import pipeline
from msrec.launch.cluster.job_specs import convert_spec, evaluate_spec, predict_spec
from msrec.launch.cluster.profiles import Profile, Target
from msrec.launch.config.run_config import load_config

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Fake scheduler that records jobs and lets some fail."""
    tiny_dataset(tmp_path / "tiny", rows=200)
    site = Site(tmp_path)
    monkeypatch.setattr(pipeline, "submit", site.submit)
    monkeypatch.setattr(pipeline, "write_report", site.report)
    return site


class Site:
    def __init__(self, root):
        self.root, self.jobs, self.fails = root, [], set()

    def submit(self, spec, target, console, *, dry_run, wait):
        assert wait, "a stage must end before the next one begins"
        if not dry_run:
            spec.prepare()
        self.jobs.append((spec.job, spec.args))
        return 1 if spec.job in self.fails else 0

    def report(self, path, runs):
        self.jobs.append(("report", tuple(runs.values())))

    def run(self, *overrides, dry_run=False, conversion=None):
        """Exit status and jobs of one call."""
        self.jobs = []
        options = [f"dataset={self.root}/tiny", f"run_root={self.root}/runs", *overrides]
        self.output = io.StringIO()
        console = Console(file=self.output, width=200)
        target = Target("local", Profile(scheduler="local_cwd"), "1x1")
        config = load_config(None, options)
        status = pipeline.run_pipeline(config, target, console, conversion, dry_run=dry_run)
        return status, [job for job, _ in self.jobs]


def test_stages_run_in_order_and_encode_only_where_there_is_a_store(site):
    assert site.run() == (0, ["train", "evaluate", "report"])
    run = site.root / "runs/default"
    assert dict(site.jobs)["train"] == (str(run / "submitted.yaml"),)
    assert dict(site.jobs)["evaluate"] == (str(run),)
    store = ("run_id=llm", f"llm.store={site.root}/store")
    assert site.run(*store) == (0, ["encode", "train", "evaluate", "report"])
    config = load_config(dict(site.jobs)["encode"][0])
    assert config.run_id == "llm"


def test_it_continues_at_the_stage_that_failed(site):
    site.fails = {"evaluate"}
    assert site.run() == (1, ["train", "evaluate"])
    assert "evaluate failed; the same command continues from here" in site.output.getvalue()
    site.fails = set()
    assert site.run() == (0, ["evaluate", "report"])
    assert site.run() == (0, [])
    assert "stage 1 of 3, train: done before" in site.output.getvalue()


def test_with_another_config_all_stages_run_again(site):
    site.run()
    assert site.run("trainer.epochs=3") == (0, ["train", "evaluate", "report"])


def test_with_raw_tables_the_first_stage_makes_the_dataset(site):
    config = load_config(None, [f"dataset={site.root}/new", f"run_root={site.root}/runs"])
    raw = site.root / "raw"
    raw.mkdir()
    conversion = convert_spec(raw, config.dataset, ["--split=time"])
    assert conversion.args == (
        *("tables", str(raw), str(site.root / "new"), "--engine=ranks", "--split=time"),
    )
    options = (f"dataset={site.root}/new",)
    assert site.run(*options, conversion=conversion) == (
        0,
        ["convert", "train", "evaluate", "report"],
    )
    assert site.run(*options, conversion=conversion) == (0, [])
    other = convert_spec(raw, config.dataset, ["--split=random"])
    assert site.run(*options, conversion=other)[1][0] == "convert"
    with pytest.raises(FileNotFoundError, match="must be a folder with the raw tables"):
        convert_spec(site.root / "none", config.dataset, [])
    remote = load_config(None, ["dataset=s3://apps/new"])
    with pytest.raises(ValueError, match=r"work=\.\.\. must name a folder for the parts"):
        convert_spec(raw, remote.dataset, ["--split=time"])
    spec = convert_spec(raw, remote.dataset, [f"--work={site.root}/parts/new"])
    assert spec.args[2] == "s3://apps/new"
    assert spec.folder == site.root / "parts/new.job"


def test_a_dry_run_writes_nothing(site):
    assert site.run(dry_run=True) == (0, ["train", "evaluate"])
    assert "would write" in site.output.getvalue()
    assert not (site.root / "runs").exists()


def test_a_broken_record_is_refused(site):
    site.run()
    (site.root / "runs/default/pipeline.json").write_text(json.dumps({"config": 1}))
    with pytest.raises(ValueError, match="must be what `msrec launch pipeline` writes"):
        site.run()


def test_the_options_of_a_job_on_a_run_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a run folder"):
        evaluate_spec(tmp_path, [])
    (tmp_path / "config.yaml").write_text(f"dataset: {tmp_path}\n")
    assert evaluate_spec(tmp_path, ["split=valid"]).folder == tmp_path / "jobs/evaluate-valid"
    with pytest.raises(ValueError, match="'splt=valid' is not known here"):
        evaluate_spec(tmp_path, ["splt=valid"])
    with pytest.raises(ValueError, match=r"predict needs out=\.\.\.; it is not given"):
        predict_spec(tmp_path, ["data=new"])
    with pytest.raises(ValueError, match="must be a URL without credentials"):
        predict_spec(tmp_path, ["data=s3://k:s3cr3t@b/new", "out=scores"])
    spec = predict_spec(tmp_path, ["data=new", "out=s3://b/scores"])
    assert spec.folder == tmp_path / "jobs/predict-scores"
    assert spec.args == (str(tmp_path), "data=new", "out=s3://b/scores")
