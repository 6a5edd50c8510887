"""No secret of a URL gets past the place where text enters, and none is printed."""

import logging
import re
import sys

import pytest
import yaml
from fuzz import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchx.specs.finder import ComponentValidationException

import msrec
from msrec.data.io.paths import local_path, redacted, refuse_secrets, to_path
from msrec.launch.cluster.components import evaluate, train
from msrec.launch.cluster.job_specs import EVALUATE_OPTIONS, read_options
from msrec.launch.cluster.profiles import load_profile
from msrec.launch.config.run_config import load_config
from msrec.tools.cli.main import main
from msrec.tools.cli.terminal import LineFormatter
from msrec.tools.experiment.sweep import load_sweep

SCHEMES = st.sampled_from(["s3", "gs", "https", "postgresql+psycopg", "S3", "memory"])
KEYS = st.text("abcXYZ019+/=-_.:@%", min_size=1, max_size=20).map(lambda key: f"SECRET{key}SECRET")
URLS = [
    *("s3://U:SECRET@b/x", "s3://U:SEC/SECRET@b/x", "s3://SECRET@b/x", "s3:/U:SECRET@b/x"),
    *("https://h/x?token=SECRET", "https://h:80/x?SECRET", "s3://U:SECRET%40b/x"),
    *("simplecache::s3://U:SECRET@b/x", "a=s3://U:SECRET@b/x", "x,gs://:SECRET@b,y"),
    *("http://u:SECRET@h:5000", "s3://U:p@SECRET@b/x", "S3://U:SECRET@B", "s3:///U:SECRET@b"),
]
PLAIN = [
    *("s3://bucket/app", "http://host:5000", "http://127.0.0.1:8000/score", "sqlite:///mlflow.db"),
    *("s3://bucket/a@2x/b", "http://[::1]:8000/x", "runs/a", "C:/data", "key=a:b@c", "a?b"),
    *("hf://datasets/user/repo@main/x", "slurm://torchx/train-123", "http://h:80: refused"),
]


@given(SCHEMES, st.text("user01", max_size=5), KEYS)
@settings(max_examples=examples(300), deadline=None)
def test_a_key_in_a_url_is_refused_and_never_repeated(scheme, user, key):
    assume(not re.match(r"\d+(?![\w%+-])", key))
    for url in (f"{scheme}://{user}:{key}@bucket/app", f"{scheme}:/{user}:{key}@bucket/app"):
        assert "SECRET" not in redacted(f"failed: {url} is not there")
        for check in (to_path, local_path, lambda text: refuse_secrets("it", {"a": [text]})):
            with pytest.raises(ValueError, match="without credentials") as refused:
                check(url)
            assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize("url", URLS)
def test_every_way_in_refuses_a_secret_without_repeating_it(tmp_path, url):
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump({"dataset": url}))
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump({url: 1}))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"out": "x", "about": url}))
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"mine": {"scheduler": url}}))
    ways = [
        lambda: load_config(tmp_path / "conf.yaml"),
        lambda: load_config(tmp_path / "keys.yaml"),
        lambda: load_config(None, [f"dataset={url}"]),
        lambda: load_config(None, [url]),
        lambda: load_config(None, [f"llm.store={url}=1"]),
        lambda: load_sweep(tmp_path / "sweep.yaml"),
        lambda: load_profile("mine", tmp_path / "profiles.yaml"),
        lambda: read_options([f"data={url}"], EVALUATE_OPTIONS),
        lambda: read_options([url], EVALUATE_OPTIONS),
        lambda: evaluate("run=runs/a", f"data={url}"),
        lambda: evaluate(url),
        lambda: train("config=conf.yaml", f"dataset={url}"),
        lambda: msrec.report(url, {"a": tmp_path}),
        lambda: msrec.report(tmp_path / "x.html", {"a": url}),
        lambda: load_config(None, ["dataset=x", f"init_from={url}"]),
        lambda: msrec.evaluate(tmp_path, data=url),
        lambda: msrec.predict(tmp_path, url, tmp_path / "out"),
        lambda: msrec.predict(tmp_path, tmp_path, url),
        lambda: msrec.compare(url, tmp_path),
        lambda: msrec.explain(url),
        lambda: msrec.plan(url),
        lambda: msrec.convert("tables", url, tmp_path / "out"),
        lambda: msrec.synthetic(url),
        lambda: msrec.load_dataset(url),
        lambda: msrec.open_run(url),
    ]
    for number, way in enumerate(ways):
        with pytest.raises(
            (ValueError, ComponentValidationException), match="without credentials"
        ) as refused:
            way()
        assert "SECRET" not in str(refused.value), number


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_is_neither_refused_nor_changed(text):
    refuse_secrets("it", text)
    assert redacted(text) == text


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("command", ["report URL", "evaluate r checkpoint=URL", "nonsense --x=URL"])
def test_the_command_line_ends_before_a_secret_is_used(monkeypatch, capsys, command, url):
    monkeypatch.setattr(sys, "argv", ["msrec", *command.replace("URL", url).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    output = "".join(capsys.readouterr())
    assert "without credentials" in output
    assert "SECRET" not in output


def test_a_stack_of_a_library_is_printed_without_its_secrets(monkeypatch, capsys):
    def fail(**_):
        raise RuntimeError("no answer from http://u:SECRET@endpoint:9000/x")

    monkeypatch.setattr("msrec.tools.cli.main.app", fail)
    monkeypatch.setattr(sys, "argv", ["msrec", "show", "x"])
    with pytest.raises(SystemExit) as ended:
        main()
    output = "".join(capsys.readouterr())
    assert ended.value.code == 1
    assert "Traceback" in output
    assert "http://***@endpoint:9000/x" in output
    assert "SECRET" not in output


def test_a_log_line_has_neither_secrets_nor_line_ends_of_names():
    record = logging.LogRecord(
        "msrec", 30, "", 0, "%s from %s", ("feed\nerror: \x1b[31mfake", "s3://U:SECRET@b"), None
    )
    line = LineFormatter("%(message)s").format(record)
    assert line == r"feed\nerror: \x1b[31mfake from s3://***@b"


@pytest.mark.parametrize("url", ["s3://b/x", "s3:/b/x", "gs://b", "https://h/x"])
def test_a_url_is_never_taken_for_a_folder_of_this_machine(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    for way in (
        lambda: local_path(url),
        lambda: msrec.report(url, {"a": tmp_path}),
        lambda: load_config(None, ["dataset=x", f"plan={url}"]),
        lambda: msrec.synthetic(url),
        lambda: load_config(None, ["dataset=x", f"run_root={url}"]),
    ):
        with pytest.raises(ValueError, match="must be a folder or file of this machine"):
            way()
    with pytest.raises(ValueError, match="a URL must have two slashes after its scheme"):
        msrec.evaluate(url.replace("//", "/"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_url_is_a_path_of_this_machine(tmp_path):
    assert local_path(f"file://{tmp_path}") == to_path(f"file://{tmp_path}") == tmp_path
