"""`msrec bench convert` measures conversions that make the same dataset."""

import pytest

from msrec.tools.bench.conversion import command
from msrec.tools.bench.conversion.command import bench_convert


@pytest.mark.slow
def test_engines_are_measured_on_the_same_rows(tmp_path, monkeypatch, capsys):
    costs = []

    def measured(arguments):
        costs.append((arguments, run(arguments)))
        return costs[-1][1]

    run = command.run_measured
    monkeypatch.setattr(command, "run_measured", measured)
    bench_convert("3000", "polars,processes", 1, "time", tmp_path / "bench")
    assert [arguments[-1] for arguments, _ in costs] == ["polars", "1"]
    assert all(0 < cost.cpu_s < 60 and cost.peak_gib > 0.05 for _, cost in costs)
    assert "3,000" in capsys.readouterr().out
    assert not (tmp_path / "bench").exists()


def test_datasets_that_differ_are_refused(tmp_path):
    for name in ("polars", "processes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.yaml").write_text(name)
    with pytest.raises(ValueError, match=r"datasets of all engines must be the same; Files .*yaml"):
        command._check_same(tmp_path / "polars", tmp_path / "processes")
