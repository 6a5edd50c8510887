"""Five days, each trained from the day before: progressive metrics, and deltas of the exports."""

import json
import shutil
import sys

import numpy as np
import pytest
from days import DAYS, contents
from sklearn.metrics import log_loss, roc_auc_score

from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import load_schema
from msrec.launch.distributed import process_group
from msrec.launch.evaluation.evaluate import evaluate, predictions_folder
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.serving.delta.apply import apply_delta, point_link
from msrec.launch.serving.delta.delta_folder import rows_files
from msrec.launch.training.metric_log import load_metric_log
from msrec.tools.cli.main import main

pytestmark = pytest.mark.slow


def test_the_deltas_of_five_days_make_the_last_export_bit_for_bit(root, tmp_path):
    made = shutil.copytree(root / "exports/1", tmp_path / "1")
    for day in DAYS[1:]:
        delta = apply_delta(made, root / f"deltas/{day}", tmp_path / str(day))
        made = tmp_path / str(day)
        table = delta.parts["tables/user_id.npy"]
        assert table.kind == "rows"
        assert 0 < table.changed + table.new < table.shape[0] / 2
        assert delta.parts["vocabularies/user_id.parquet"].kind == "values"
    assert contents(made) == contents(root / "exports/5")
    assert contents(made) != contents(root / "exports/4")


def test_a_delta_has_the_table_rows_of_the_users_of_its_day(root):
    for day in DAYS[1:]:
        data = root / f"day{day}"
        columns = SplitReader(data, load_schema(data), "train").take(np.arange(640))
        index = np.load(rows_files(root / f"deltas/{day}", "tables/user_id.npy")[0])
        old = load_schema(root / f"day{day - 1}").tables["user_id"]
        new = load_schema(data).tables["user_id"]
        assert len(np.unique(columns["user_id"])) > 80
        assert set(index) == set(columns["user_id"]) | set(range(old, new))


def test_progressive_metrics_are_those_of_the_model_of_the_day_before(root):
    for day in DAYS[1:]:
        run, before, data = root / f"runs/day{day}", root / f"runs/day{day - 1}", root / f"day{day}"
        with process_group("cpu") as process:
            evaluate(before, process, "train", data=data)
        scored = load_predictions(predictions_folder(before, "train", data=data))
        logged = load_metric_log(run).steps["progressive"]
        assert list(logged) == [0]
        names = {"all": np.full(len(scored.label), True)}
        for number, name in enumerate(("feed", "shop")):
            names[f"scenario={name}"] = scored.scenario == number
        for name, rows in names.items():
            label, score = scored.label[rows], scored.score[rows]
            assert logged[0][f"rows/{name}"] == rows.sum() > 200
            assert logged[0][f"auc/{name}"] == pytest.approx(roc_auc_score(label, score), abs=5e-4)
            expected = log_loss(label, score.astype(np.float64))
            assert logged[0][f"log_loss/{name}"] == pytest.approx(expected, abs=1e-6)
        assert logged[0]["auc/all"] > 0.6


def msrec(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["msrec", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_the_commands_of_a_day(root, tmp_path, monkeypatch, capsys):
    run, out = tmp_path / "day3", tmp_path / "export"
    options = [f"init_from={root}/runs/day2", f"run_root={tmp_path}"]
    msrec(monkeypatch, "train", *options, "--data", root / "day3", "trainer.max_steps=2")
    assert list(load_metric_log(run).steps) == ["progressive", "train", "valid"]
    base = root / "exports/2"
    msrec(monkeypatch, "export", run, "--out", out, "--since", base, "--no-compile")
    (tmp_path / "current").symlink_to(base)
    delta, new = tmp_path / "export-delta", tmp_path / "new"
    capsys.readouterr()
    msrec(monkeypatch, "apply", tmp_path / "current", delta, "--out", new, "--swap")
    assert f"{tmp_path}/current points to {new}" in " ".join(capsys.readouterr().out.split())
    assert contents(tmp_path / "current") == contents(out)
    assert contents(base) != contents(out)
    (sizes,) = [json.loads((delta / "delta.json").read_text())]
    files = contents(delta)
    assert sizes["num_bytes"] == sum(map(len, files.values())) - len(files["delta.json"])


def refusal(root, tmp_path, base, delta):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        apply_delta(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_delta_of_another_base_is_refused(root, tmp_path):
    message = refusal(root, tmp_path, root / "exports/1", root / "deltas/3")
    assert "must be applied to the export" in message
    assert "runs/day2" in message
    assert "in their order" in message


@pytest.mark.parametrize("name", ["rows/tables/user_id.rows.npy", "whole/dense.pt2", "export.json"])
def test_a_damaged_delta_is_refused(root, tmp_path, name):
    delta = shutil.copytree(root / "deltas/2", tmp_path / "delta")
    data = bytearray((delta / name).read_bytes())
    data[-2] ^= 1
    (delta / name).write_bytes(data)
    message = refusal(root, tmp_path, root / "exports/1", delta)
    assert f"{name} must have the CRC-32" in message
    assert "The delta is damaged: copy it again" in message
    (delta / name).unlink()
    assert "found no file" in refusal(root, tmp_path, root / "exports/1", delta)


def test_a_damaged_base_and_a_folder_without_a_delta_are_refused(root, tmp_path):
    base = shutil.copytree(root / "exports/1", tmp_path / "base")
    table = base / "tables/user_id.npy"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    assert "The export is damaged" in refusal(root, tmp_path, base, root / "deltas/2")
    assert "holds no delta" in refusal(root, tmp_path, root / "exports/1", root / "exports/2")
    delta = shutil.copytree(root / "deltas/2", tmp_path / "delta")
    manifest = json.loads((delta / "delta.json").read_text())
    (delta / "delta.json").write_text(json.dumps(manifest | {"crc32": {"../x": "00000000"}}))
    assert "files of its folder only" in refusal(root, tmp_path, root / "exports/1", delta)


def test_a_link_is_pointed_to_the_new_export(root, tmp_path):
    (tmp_path / "current").symlink_to(root / "exports/1")
    apply_delta(tmp_path / "current", root / "deltas/2", tmp_path / "2")
    point_link(tmp_path / "current", tmp_path / "2")
    assert (tmp_path / "current").resolve() == tmp_path / "2"
    assert contents(tmp_path / "current") == contents(root / "exports/2")
