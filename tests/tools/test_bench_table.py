"""The benchmark of all models: what is tried, what is kept, and how it resumes."""

from pathlib import Path

import pytest
from cells import made_cell, save_cell
from tiny import tiny_dataset

from msrec.launch.config.run_config import load_config
from msrec.model.backbones import BACKBONES
from msrec.tools.cli.bench import BENCHMARK, bench_table
from msrec.tools.experiment import runner
from msrec.tools.experiment.benchmark_page import benchmark_page
from msrec.tools.experiment.cell import Cell, PlannedTraining, load_cell, train_cell
from msrec.tools.experiment.results import seed_values
from msrec.tools.experiment.sweep import load_sweep
from msrec.tools.experiment.trainings import Setting, load_cells, settings
from msrec.tools.experiment.tuning import START, best_trial, overrides, propose, search_space

pytestmark = pytest.mark.slow

CONFIG = "dataset: {data}\nembeddings: {{ dim: 4 }}\ntrainer: {{ global_batch: 100, epochs: 2 }}\n"


# What is tried -------------------------------------------------------------------------------


def test_the_first_trial_is_the_same_for_all_and_lies_in_the_space():
    assert propose([]) == START
    assert set(START) == set(search_space())


def test_a_proposal_depends_on_the_trials_alone():
    first = made_cell(0.7, START)
    trials = [first, made_cell(0.71, propose([first]))]
    assert propose(trials) == propose(trials)
    assert propose([*trials, made_cell(None, START)]) != propose(trials)


def test_every_model_takes_every_choice(tmp_path):
    for name in BACKBONES:
        for number in range(3):
            choice = propose([made_cell(0.7, START)] * number)
            config = load_config(None, [f"dataset={tmp_path}", f"backbone.name={name}"])
            assert config.backbone.name == name
            options = [f"dataset={tmp_path}", f"backbone.name={name}", *overrides(choice, name)]
            assert 0.1 <= load_config(None, options).backbone.dropout <= 0.5


def test_the_models_are_all_backbones_and_the_baselines():
    benchmark = load_sweep(BENCHMARK)
    baselines = ("mlp_wide", "deepfm_wide", "mlp_llm_concat", "mlp_llm_experts")
    of_one_label = [name for name, cls in BACKBONES.items() if not cls.entire_space]
    assert list(benchmark.backbones) == [*of_one_label, *baselines]
    for setting in settings(benchmark):
        config = load_config(setting.config, setting.options)
        assert (config.llm_feature.kind != "none") == ("llm" in setting.model)
        assert config.embeddings.per_scenario == (setting.model == "separate")
        assert config.embeddings.dim == (32 if "wide" in setting.model else 16)


# A cell --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    with runner.worker_pool(1) as pool:

        def run_training(folder, options, split):
            training = PlannedTraining(folder, folder.parent / "conf.yaml", options, START, split)
            return pool.submit(train_cell, training).result(timeout=120)

        yield run_training


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    tiny_dataset(folder / "data")
    (folder / "conf.yaml").write_text(CONFIG.format(data=folder / "data"))
    return folder


def test_a_cell_keeps_its_figures_and_looks_at_the_test_split_only_when_asked(tiny, run):
    options = ["backbone.name=mlp", "backbone.dims=[8]"]
    trial = run(tiny / "trial", options, None)
    assert trial.results is None
    assert not (tiny / "trial/results.json").exists()
    assert 0.5 < trial.valid < 1
    # 41 + 61 + 7 rows of 4; the dense column through 64, 3 vectors of 4, 8 hidden, 1 logit
    assert trial.table_parameters == 109 * 4
    assert trial.parameters == 2 * 64 + (64 + 12 + 1) * 8 + 9
    evaluated = run(tiny / "seed", options, "test")
    assert evaluated.results.split == "test"
    assert load_cell(tiny / "seed") == evaluated
    assert not (tiny / "seed/checkpoints").exists()


def test_a_loss_that_is_not_finite_is_a_finding_not_a_failure(tiny, run):
    options = ["backbone.name=mlp", "optimizer.lr=1e30"]
    cell = run(tiny / "burst", options, "test")
    assert cell.valid is None
    assert cell.results is None


# The table -----------------------------------------------------------------------------------


@pytest.fixture
def setting(tmp_path):
    """The model mmoe on MovieLens, with a function that sets trials and seeds."""

    def changed(trials, seeds):
        sweep = load_sweep(BENCHMARK).subset(["movielens"], ["mmoe"])
        sweep = sweep.model_copy(update={"out": tmp_path, "trials": trials, "seeds": seeds})
        return Setting(sweep, "movielens", "mmoe", "")

    return changed


def test_the_best_trial_has_the_best_metric_in_its_direction():
    cells = [made_cell(value, {"optimizer.lr": value}) for value in (9.0, 7.5, 8.0)]
    lower = [cell.model_copy(update={"metric": "rmse/label=watch/all"}) for cell in cells]
    assert best_trial(cells).valid == 9.0
    assert best_trial(lower).valid == 7.5
    assert best_trial([*cells, None]) is None


def test_a_cell_of_an_older_version_is_read():
    tree = made_cell(0.75, {}).model_dump(mode="json")
    old = {("valid_auc" if key == "valid" else key): value for key, value in tree.items()}
    del old["metric"]
    assert Cell.model_validate(old) == made_cell(0.75, {})


def test_the_best_trial_on_validation_is_evaluated_and_no_other(setting, monkeypatch):
    setting = setting(trials=3, seeds=2)
    trained = []

    def train(training):
        trained.append(training)
        aucs = {"trial-0": 0.70, "trial-1": None, "trial-2": 0.75}
        return save_cell(training, aucs.get(training.folder.name, 0.8))

    monkeypatch.setattr(runner, "train_cell", train)
    assert runner.tune(setting).valid == 0.75
    for training in runner.missing_seeds(setting.sweep, [load_cells(setting)]):
        train(training)
    names = [training.folder.name for training in trained]
    assert names == ["trial-0", "trial-1", "trial-2", "seed-0", "seed-1"]
    assert [training.split for training in trained] == [None] * 3 + ["test"] * 2
    best = trained[2].choice
    assert trained[3].choice == trained[4].choice == best
    assert [training.options[-1] for training in trained] == ["seed=0"] * 4 + ["seed=1"]
    assert seed_values(load_cells(setting), "auc") == {0: 0.8, 1: 0.8}
    runner.tune(setting)
    assert len(trained) == 5


def test_a_model_without_a_finite_trial_is_an_error(setting, monkeypatch):
    monkeypatch.setattr(runner, "train_cell", lambda training: save_cell(training, None))
    with pytest.raises(ValueError, match="no trial ended with a finite loss"):
        runner.tune(setting(trials=2, seeds=1))


def test_a_dry_run_says_what_is_left_and_runs_nothing(setting, tmp_path, capsys):
    save_cell(setting(2, 1).training("trial", 0, START), 0.7)
    args = (["movielens"], ["mmoe", "star"], 2, 1, 1)
    bench_table(Path("none"), tmp_path, *args, dry_run=True, page=None)
    output = capsys.readouterr().out
    assert "1 of 8 trainings are done" in output
    assert "movielens mmoe: 3 to run: trial-1 seed-0 speed-0" in output
    assert "movielens star: 4 to run" in output


def test_raw_data_is_converted_once_before_anything_else(tmp_path, monkeypatch):
    commands = []

    def run(*args):
        commands.append([str(arg) for arg in args])
        folder = tmp_path / "data/movielens"
        if folder.exists():
            raise ValueError("no further command")
        folder.mkdir(parents=True)
        (folder / "dataset.yaml").touch()

    monkeypatch.setattr(runner, "run_msrec", run)
    with pytest.raises(ValueError, match="no further command"):
        bench_table(Path("raw"), tmp_path, ["movielens"], ["mmoe", "mlp_llm_concat"], 1, 1, 1)
    convert, encode = commands
    assert convert[:4] == ["convert", "tables", "raw/ml1m", str(tmp_path / "data/movielens")]
    assert "--protocol=scenario-wise" in convert
    assert encode[:2] == ["encode", "configs/benchmark/movielens.yaml"]
    assert f"llm.store={tmp_path}/store/movielens" in encode


def test_when_all_cells_are_there_the_page_is_written_without_any_data(setting, tmp_path, capsys):
    setting = setting(trials=1, seeds=2)
    save_cell(setting.training("trial", 0, START), 0.7)
    for seed, auc in enumerate((0.80, 0.82)):
        save_cell(setting.training("seed", seed, START), auc)
    save_cell(setting.training("speed", 0, START), 0.6)
    page = tmp_path / "docs/results/benchmark.md"
    bench_table(Path("none"), tmp_path, ["movielens"], ["mmoe"], 1, 2, 1, False, page)
    text = page.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| mmoe | 0.81"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["mmoe", "0.8100 ± 0.0141", "0.8086", "0.5000 ± 0.0000"]
    assert cells[-4:] == ["7", "70", "1,000", "0.5"]
    assert "1 models with a published AUC, 1 reach it here" in text
    assert "| mmoe | 0.8100 ± 0.0141 | 0.8086 |" in capsys.readouterr().out


def test_a_model_below_its_published_figure_and_a_slow_training_are_named(setting):
    setting = setting(trials=1, seeds=1)
    save_cell(setting.training("trial", 0, START), 0.7)
    save_cell(setting.training("seed", 0, START), 0.80, seconds=130)
    text = benchmark_page(setting.sweep, setting.sweep)
    assert "below it: mmoe (0.8000 < 0.8086)" in text
    assert "the longest took 130 s, 1 more than 120 s" in text


@pytest.mark.parametrize(
    ("benchmarks", "models", "message"),
    [
        (["netflix"], [], "a benchmark must be one of movielens, .*; got 'netflix'"),
        ([], ["mmo"], "a model must be one of mlp, .*; got 'mmo'"),
    ],
)
def test_unknown_names_are_refused(tmp_path, benchmarks, models, message):
    with pytest.raises(ValueError, match=message):
        bench_table(Path("none"), tmp_path, benchmarks, models, 1, 1, 1, True, None)
