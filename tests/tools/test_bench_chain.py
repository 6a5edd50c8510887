"""`msrec bench chain` and `interest`: commands, costs per row, refusals."""

import json

import pytest

from msrec.launch.config.run_config import load_config
from msrec.tools.bench.conversion import chain
from msrec.tools.bench.conversion.measured import Cost, run_measured
from msrec.tools.bench.meta import bench_interest


def test_costs_are_given_per_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = []

    def measured(arguments):
        commands.append(arguments[0])
        if arguments[0] == "train":
            assert load_config(tmp_path / arguments[1], []).backbone.name == "dlrm"
        return Cost(2.0, 0.5, 0.25)

    monkeypatch.setattr(chain, "run_measured", measured)
    chain.bench_chain("1000,2000", 1, False, tmp_path / "scratch")
    assert commands == 2 * ["convert", "train", "evaluate", "predict", "drift"]
    found = json.loads((tmp_path / "runs/bench/chain.json").read_text())["findings"]
    assert [line["rows"] for line in found] == 5 * [1000] + 5 * [2000]
    printed = capsys.readouterr().out
    assert "500.00" in printed  # 0.5 s of 1,000 rows, in us
    assert "250.00" in printed
    assert not (tmp_path / "scratch").exists()


def test_a_command_that_fails_is_an_error():
    with pytest.raises(ValueError, match=r"msrec drift nowhere nowhere must end without an error"):
        run_measured(["drift", "nowhere", "nowhere"])


def test_the_cost_of_interest_blocks_needs_a_run_that_has_them(tmp_path):
    (tmp_path / "conf.yaml").write_text("dataset: data\n")
    with pytest.raises(ValueError, match=r"conf\.yaml must have interest\.enabled=true"):
        bench_interest(tmp_path / "conf.yaml")
