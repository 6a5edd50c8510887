"""A sweep: what is run, what is kept, what its reports say; and metrics by history."""

from pathlib import Path
from statistics import mean, stdev

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from cells import save_cell
from scipy import stats
from sklearn.metrics import roc_auc_score
from tiny import tiny_dataset, tiny_store

from msrec.data.io.atomic_files import write_json
from msrec.data.io.exclusive_files import exclusive
from msrec.launch.config.run_config import load_config
from msrec.launch.evaluation.results import CombinedResults, LabelResults
from msrec.launch.evaluation.slices import EDGES, bucket_names, row_groups
from msrec.model.metrics.definitions import Metrics, ScenarioMetrics
from msrec.model.metrics.exact import sort_rows
from msrec.tools.cli.studies import experiment
from msrec.tools.experiment import runner
from msrec.tools.experiment.cell import CELL_FILE
from msrec.tools.experiment.results import metric_difference, paired_difference
from msrec.tools.experiment.sweep import ARMS, load_sweep
from msrec.tools.experiment.sweep_report import write_sweep_report
from msrec.tools.experiment.trainings import load_cells, settings

pytestmark = pytest.mark.slow

SWEEP = """
out: {folder}/out
seeds: {seeds}
arms: {arms}
datasets:
  tiny:
    config: {folder}/conf.yaml
    options: [llm.store={folder}/store]
    backbones:
      mlp: ["backbone.dims=[8]"]
      wide: [backbone.name=mlp, "backbone.dims=[16]"]
"""
CONFIG = "dataset: {data}\nembeddings: {{ dim: 4 }}\ntrainer: {{ global_batch: 100, epochs: 1 }}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    tiny_store(tiny_dataset(folder / "data"), folder / "store")
    (folder / "conf.yaml").write_text(CONFIG.format(data=folder / "data"))
    return folder


def sweep_file(folder, arms="[bare, both, shuffled]", seeds=2, name="sweep.yaml", text=SWEEP):
    path = folder / name
    path.write_text(text.format(folder=folder, arms=arms, seeds=seeds))
    return path


# What is run ---------------------------------------------------------------------------------


def test_every_arm_of_a_seed_comes_before_the_next_seed(folder):
    sweep = load_sweep(sweep_file(folder))
    trainings = runner.missing_seeds(sweep, [load_cells(s) for s in settings(sweep)])
    assert [t.folder.relative_to(folder / "out/tiny") for t in trainings[:4]] == [
        Path("mlp/bare/seed-0"),
        Path("mlp/both/seed-0"),
        Path("mlp/shuffled/seed-0"),
        Path("wide/bare/seed-0"),
    ]
    assert len(trainings) == 2 * 2 * 3
    config = load_config(trainings[-1].config, trainings[-1].options)
    assert (config.backbone.name, config.backbone.dims, config.seed) == ("mlp", [16], 1)
    assert (config.meta.user, config.llm.control) == (True, "shuffled")


def test_every_known_arm_is_a_config(folder):
    path = sweep_file(folder, arms=f"[{', '.join(ARMS)}]")
    levels = {
        setting.arm: set(load_config(setting.config, setting.options).knowledge_levels)
        for setting in settings(load_sweep(path))
    }
    assert levels == {
        "bare": set(),
        "user": {"user"},
        "scenario": {"scenario"},
        "item": {"item"},
        "concat": {"user"},
        "match": {"user", "item"},
        **dict.fromkeys(("both", "shuffled", "random", "learned"), {"user", "scenario"}),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("arms:", "arm:"), "arm"),
        (("[bare, both, shuffled]", "[bare, boht]"), "boht"),
        (
            ("[bare, both, shuffled]", "[both]"),
            "reference must be one of the arms both; got 'bare'",
        ),
        (("seeds: 2", "seeds: 0"), "seeds: "),
        (("seeds: 2", "controls: {both: [shuffle]}"), "controls must name arms, bare, .*'shuffle'"),
        (("      wide:", "      ../wide:"), "should match pattern"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(folder, change, message):
    path = sweep_file(folder, name="wrong.yaml")
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=message):
        load_sweep(path)


@pytest.mark.parametrize("path", sorted(Path("configs/experiment").glob("*.yaml")), ids=str)
def test_every_sweep_of_the_repository_is_valid(path):
    for setting in settings(load_sweep(path)):
        load_config(setting.config, setting.options)


def test_a_missing_sweep_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.yaml must exist"):
        load_sweep(tmp_path / "none.yaml")


def test_a_sweep_runs_resumes_and_reports(folder, monkeypatch, capsys):
    encoded = []
    monkeypatch.setattr(runner, "run_msrec", lambda *args: encoded.append(args))
    path = sweep_file(folder, arms="[bare, both]", seeds=1)
    experiment(path, jobs=1, dry_run=True)
    output = capsys.readouterr().out
    assert "0 of 4 trainings are done" in output
    assert "tiny wide both: 1 to run: seed-0" in output
    assert encoded == []
    experiment(path, jobs=1, dry_run=False)
    [(command, _, *options)] = encoded  # one store, made once
    assert command == "encode"
    assert options[-1] == "llm.items=false"
    out = folder / "out"
    frame = pl.read_parquet(out / "results.parquet")
    assert set(frame["kind"]) == {"all", "scenario", "user_history", "item_history"}
    for (_, kind), rows in frame.group_by("arm", "kind"):
        if kind != "all":
            assert (
                rows.group_by("backbone").agg(pl.col("rows").sum())["rows"].to_list() == [400] * 2
            )
    assert "| mlp | both |" in (out / "report.md").read_text()
    assert "Plotly.react" in (out / "report.html").read_text()
    assert "epoch 1" in (out / "tiny/mlp/both/seed-0/output.txt").read_text()
    capsys.readouterr()
    experiment(path, jobs=1, dry_run=False)
    assert "4 of 4 trainings are done" in capsys.readouterr().out
    assert len(encoded) == 1
    config = folder / "conf.yaml"
    text = config.read_text()
    config.write_text(text + "optimizer: { lr: 0.5 }\n")
    experiment(path, jobs=1, dry_run=True)
    assert "0 of 4 trainings are done" in capsys.readouterr().out, "the config has changed"
    config.write_text(text)


def test_a_sweep_encodes_every_source_that_an_arm_reads(folder, monkeypatch):
    arms = """{a: ["llm.sources=[lsa]"], b: ["llm.sources=[lsa, minilm-l6-v2]"], bare: [],
      d: ["llm.sources=[smollm2-135m-instruct]"], e: [meta.user=true], f: [meta.item=true]}"""
    path = sweep_file(folder, arms=arms, name="sources.yaml", text=SWEEP.replace("/out", "/s"))
    pending = [
        (load_cells(s), load_config(s.config, s.options)) for s in settings(load_sweep(path))
    ]
    calls = []
    monkeypatch.setattr(runner, "run_msrec", lambda *args: calls.append(args))
    runner._encode(pending)
    said = {(args[-2], args[-1]) for args in calls}
    assert said == {
        ("llm.sources=[lsa, minilm-l6-v2]", "llm.items=false"),
        ("llm.sources=[smollm2-135m-instruct]", "llm.items=false"),
        ("meta.user=true", "llm.items=false"),
        ("meta.item=true", "llm.items=true"),
    }
    assert len(calls) == 4


def test_a_second_sweep_into_the_same_folder_is_refused(folder):
    path = sweep_file(folder, name="twice.yaml", text=SWEEP.replace("/out", "/twice"))
    with (
        exclusive(folder / "twice", "test"),
        pytest.raises(ValueError, match=r"twice must be written by one job at a time"),
    ):
        experiment(path, jobs=1, dry_run=False)
    assert not (folder / "twice").exists()


# What the reports say ------------------------------------------------------------------------


BARE, BOTH, SHUFFLED = (0.80, 0.81, 0.79), (0.82, 0.825, 0.812), (0.801, 0.8, 0.8)


@pytest.fixture
def evaluated(tmp_path):
    """A sweep and its file; the model mlp is evaluated, the model wide is not."""
    (tmp_path / "conf.yaml").write_text(CONFIG.format(data="data"))
    path = sweep_file(tmp_path, seeds=3)
    sweep = load_sweep(path)
    aucs = {"bare": BARE, "both": BOTH, "shuffled": SHUFFLED}
    for setting in settings(sweep):
        if setting.model == "mlp":
            for seed, auc in enumerate(aucs[setting.arm]):
                save_cell(setting.training("seed", seed, {}), auc)
    return sweep, path


def test_a_paired_difference_is_the_formula_and_scipys_test():
    difference = paired_difference(BOTH, BARE)
    differences = np.subtract(BOTH, BARE)
    assert difference.mean == pytest.approx(differences.mean())
    error = stdev(differences) / np.sqrt(3)
    interval = stats.t.interval(0.95, 2, loc=differences.mean(), scale=error)
    assert difference.half_width == pytest.approx((interval[1] - interval[0]) / 2)
    assert difference.p == pytest.approx(stats.ttest_rel(BOTH, BARE).pvalue)


def test_a_test_that_is_undefined_is_not_made_up():
    assert paired_difference([0.8], [0.7]).p is None
    assert str(paired_difference([0.8], [0.7])) == "+0.1000"
    assert paired_difference([0.75, 0.75], [0.5, 0.5]).p is None


def test_the_report_holds_means_differences_and_what_is_missing(evaluated):
    text = write_sweep_report(*evaluated)
    line = next(x for x in text.splitlines() if x.startswith("| mlp | both |"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3] == f"{mean(BOTH):.4f} ± {stdev(BOTH):.4f}"
    assert cells[6] == str(paired_difference(BOTH, BARE))
    assert cells[7] == str(paired_difference(BOTH, SHUFFLED))
    assert "| wide | bare | not run |" in text
    assert "- both above bare: 1 of 1 backbones, 0 with p < .01" in text
    assert text.index("| 0 (10 rows)") < text.index("| 1-4 (10 rows)")


def test_controls_that_a_sweep_names_are_compared_too(evaluated):
    sweep, path = evaluated
    named = sweep.model_copy(update={"controls": {"shuffled": ["both"]}})
    text = write_sweep_report(named, path)
    line = next(x for x in text.splitlines() if x.startswith("| mlp | shuffled |"))
    assert [cell.strip() for cell in line.split("|")][8] == str(paired_difference(SHUFFLED, BOTH))
    assert "- shuffled above both: 0 of 1 backbones, 0 with p < .01" in text


def test_the_report_compares_arms_label_by_label(tmp_path):
    """One arm learns `like` alone; it is compared with the second label of the others."""
    (tmp_path / "conf.yaml").write_text(CONFIG.format(data="data"))
    path = sweep_file(tmp_path, seeds=3)
    sweep = load_sweep(path)
    watch = {"bare": (9.0, 9.5, 9.2), "both": (8.0, 8.1, 8.3)}
    for setting in settings(sweep):
        for seed in range(3 if setting.model == "mlp" else 0):
            training = setting.training("seed", seed, {})
            cell, like = save_cell(training, BARE[seed]), Metrics(rows=8, auc=BOTH[seed])
            results = cell.results.model_copy(update={"label": "like"})
            if setting.arm in watch:
                rmse = Metrics(rows=9, rmse=watch[setting.arm][seed])
                of_label = {"like": like, "watch": rmse}
                kinds = {"like": "binary", "watch": "regression"}
                labels = {
                    name: LabelResults(
                        kind=kinds[name], metrics=ScenarioMetrics(one, {"feed": one})
                    )
                    for name, one in of_label.items()
                }
                ranked = Metrics(rows=8, auc=BOTH[seed], ndcg=0.5)
                ranked = LabelResults(metrics=ScenarioMetrics(ranked, {"feed": ranked}))
                combined = CombinedResults(score="click * watch", labels={"like": ranked})
                update = {"label": "click", "labels": labels, "combined": combined}
                results = results.model_copy(update=update)
            cell = cell.model_copy(update={"results": results})
            write_json(training.folder / CELL_FILE, cell.model_dump(mode="json"))
    text = write_sweep_report(sweep, path)
    click, like, watched, ranked = text.split("### ")[1:]
    assert [part.split()[0] for part in (click, like, watched)] == ["click", "like", "watch"]
    assert ranked.startswith("like ranked by click * watch\n")
    assert f"| mlp | both | {mean(BOTH):.4f} ± {stdev(BOTH):.4f} |" in ranked
    line = next(x for x in like.splitlines() if x.startswith("| mlp | shuffled |"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[3] == f"{mean(BARE):.4f} ± {stdev(BARE):.4f}"
    both = next(x for x in like.splitlines() if x.startswith("| mlp | both |"))
    assert str(paired_difference(BOTH, BARE)) in both
    both = next(x for x in watched.splitlines() if x.startswith("| mlp | both |"))
    assert str(paired_difference(watch["both"], watch["bare"])) in both
    assert "- both better than bare: 1 of 1 backbones" in watched
    frame = pl.read_parquet(sweep.out / "results.parquet")
    assert frame.filter(label="watch", kind="scenario")["rmse"].sort().to_list() == sorted(
        watch["bare"] + watch["both"]
    )


def test_seeds_are_matched_and_a_cell_of_other_options_or_split_does_not_count(evaluated):
    sweep, _ = evaluated
    (sweep.out / "tiny/mlp/both/seed-1" / CELL_FILE).unlink()
    bare, both, *_ = map(load_cells, settings(sweep))
    difference = metric_difference(both, bare)
    assert difference.mean == pytest.approx(mean([0.02, 0.022]))
    changed = sweep.model_copy(
        update={
            "datasets": {
                "tiny": sweep.datasets["tiny"].model_copy(update={"options": ["llm.store=other"]})
            }
        }
    )
    for other in (changed, sweep.model_copy(update={"split": "valid"})):
        for setting in settings(other):
            assert load_cells(setting).seeds == [None] * 3


# By history ----------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["user", "item"])
def test_a_bucket_holds_the_rows_whose_user_or_item_has_so_many_training_rows(folder, column):
    rng = np.random.default_rng(0)
    rows = rng.permutation(400)

    test = pq.read_table(folder / "data/test")
    train = pq.read_table(folder / "data/train", columns=[column])[column].to_numpy()
    values = {name: test[name].to_numpy()[rows] for name in (column, "label", "user")}
    score = rng.random(400).astype(np.float32)
    [groups] = row_groups(folder / "data", "test", [f"{column}_history"]).values()
    sorted_rows = sort_rows(score, values["label"], values["user"])
    found = sorted_rows.metrics_by(groups.grouping(rows))
    assert sum(metrics.rows for metrics in found.values()) == 400
    seen = np.array([np.sum(train == entity) for entity in values[column]])
    for low, high, name in zip(EDGES, (*EDGES[1:], np.inf), bucket_names(), strict=True):
        inside = (seen >= low) & (seen < high)
        assert (found[name].rows > 0) == inside.any()
        if inside.any():
            expected = roc_auc_score(values["label"][inside], score[inside])
            assert found[name].auc == pytest.approx(expected)
            assert found[name].rows == inside.sum()
