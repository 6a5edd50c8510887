"""`msrec zoo` and `msrec bench zoo`: the table, the page and the timings of the models."""

import io
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from rich.console import Console
from zoo import make, rows

from msrec.model.backbones import BACKBONES, backbone_options
from msrec.tools.bench.zoo import bench_zoo, step_times
from msrec.tools.zoo import ENTRIES, SEQUENCE_ENTRIES, page, zoo

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "reference"


def printed(name=None):
    console = Console(file=io.StringIO(), width=160)
    zoo(name, console)
    return console.file.getvalue()


def test_the_table_has_every_model_with_size_and_source():
    text = printed()
    for entry in ENTRIES:
        assert f" {entry.name} " in text
        assert f"{entry.num_parameters:,}" in text
    assert "llm_feature.kind=experts" in text
    assert "sequence.encoder=hstu" in text


def test_parameters_are_counted():
    entry = next(e for e in ENTRIES if e.name == "mlp")
    assert entry.num_parameters == 128 * 256 + 256 + 256 * 128 + 128 + 128 + 1


@pytest.mark.parametrize("entry", SEQUENCE_ENTRIES, ids=lambda entry: entry.name)
def test_every_sequence_encoder_has_a_summary_and_a_source(entry):
    assert 10 < len(entry.line) < 100
    assert re.search(r"\d{4}", entry.paper)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_model_has_a_summary_a_use_and_a_source(entry):
    assert 10 < len(entry.line) < 100
    assert entry.sections["When"]
    assert entry.paper == "No paper" or entry.paper[-5:].strip(")")[-4:].isdigit()


def test_one_model_is_printed_with_its_options():
    text = printed("star")
    assert "Sheng et al., CIKM 2021" in text
    assert all(option in text for option in backbone_options("star"))
    with pytest.raises(ValueError, match="a model must be one of mlp, dlrm, .*; got 'starr'"):
        printed("starr")


def test_the_page_in_docs_is_up_to_date():
    """Written by `msrec zoo --page docs/reference/models.md`."""
    assert (DOCS / "models.md").read_text() == page()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_plain_form_of_the_benchmark_gives_the_same_logits_in_training(name):
    x, scenario = rows()
    ours = make(name).train()(x, scenario)
    with mock.patch("torch.compiler.is_exporting", return_value=True):
        plain = make(name).train()(x, scenario)
    torch.testing.assert_close(plain, ours, atol=1e-5, rtol=1e-4)


def test_running_only_the_own_tower_is_faster_with_many_towers():
    rounds = step_times("separate", num_scenarios=30, batch=512, repeats=3)
    ours, plain = (min(seconds.clock for seconds in rounds[way]) for way in ("ours", "plain"))
    assert plain > 2 * ours


def test_the_benchmark_prints_a_row_per_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bench_zoo(["star", "mlp"], "2,3", batch=64, repeats=1)
    text = capsys.readouterr().out
    assert text.index(" mlp ") < text.index(" star ")
    assert "2 scenarios" in text
    with pytest.raises(ValueError, match="got 'mmo'"):
        bench_zoo(["mmo"], "2", batch=64, repeats=1)
