"""The benchmark of all models: what is tried, what is kept, what a killed one goes on with."""

import json
from pathlib import Path

import pytest
from tiny import tiny_dataset

from msrec.launch.config import load_config
from msrec.launch.evaluation.results import Results
from msrec.model.backbones import BACKBONES
from msrec.model.metrics.definitions import Metrics, ScenarioMetrics
from msrec.tools.experiment import benchmark_table, training_cells
from msrec.tools.experiment.benchmark_page import write_page
from msrec.tools.experiment.training_cells import CELL_FILE, Cell, load_cell
from msrec.tools.experiment.tuning import START, overrides, propose, search_space

CONFIG = "dataset: {data}\nembeddings: {{ dim: 4 }}\ntrainer: {{ global_batch: 100, epochs: 2 }}\n"


def made(auc, choice=START, test=False, seconds=10.0):
    """A cell that was never trained."""
    results = None
    if test:
        one = Metrics(rows=10, positives=4, auc=auc, log_loss=0.5)
        scenarios = ScenarioMetrics(one, {"feed": one})
        results = Results(dataset="d", split="test", checkpoint="c", rows=10, metrics=scenarios)
    return Cell(
        choice=choice,
        options=[],
        valid_auc=auc,
        epochs=2,
        seconds=seconds,
        rows_per_s=1000.0,
        parameters=7,
        table_parameters=70,
        results=results,
    )


# What is tried -------------------------------------------------------------------------------


def test_the_first_trial_is_the_same_for_all_and_lies_in_the_space():
    assert propose(0, []) == START
    assert set(START) == set(search_space())


def test_a_proposal_depends_on_the_number_and_what_is_done_alone():
    done = [(START, 0.7), (propose(1, [(START, 0.7)]), 0.71)]
    assert propose(2, done) == propose(2, done)
    assert propose(3, done) != propose(2, done)


def test_every_model_takes_every_choice(tmp_path):
    for name in BACKBONES:
        for number in range(3):
            choice = propose(number, [(START, 0.7)] * number)
            config = load_config(None, [f"dataset={tmp_path}", f"backbone.name={name}"])
            assert config.backbone.name == name
            options = [f"dataset={tmp_path}", f"backbone.name={name}", *overrides(choice, name)]
            assert 0.1 <= load_config(None, options).backbone.dropout <= 0.5


def test_contenders_are_all_backbones_and_the_two_llm_baselines():
    assert list(benchmark_table.CONTENDERS) == [
        *BACKBONES,
        *("mlp_wide", "deepfm_wide", "mlp_llm_concat", "mlp_llm_experts"),
    ]
    for contender in benchmark_table.CONTENDERS.values():
        options = ["dataset=d", f"backbone.name={contender.backbone}", *contender.options]
        reads = load_config(None, options).llm_feature.kind != "none"
        assert reads == contender.reads_llm
    separate = ["dataset=d", *benchmark_table.CONTENDERS["separate"].options]
    assert load_config(None, separate).embeddings.per_scenario


# A cell --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_cell():
    with training_cells.cell_processes(1) as pool:
        yield lambda *args: pool.submit(training_cells.run_cell, *args).result(timeout=120)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    tiny_dataset(folder / "data")
    (folder / "conf.yaml").write_text(CONFIG.format(data=folder / "data"))
    return folder


def test_a_cell_keeps_its_figures_and_looks_at_the_test_split_only_when_asked(tiny, run_cell):
    options = ["backbone.name=mlp", "backbone.dims=[8]"]
    trial = run_cell(tiny / "trial", tiny / "conf.yaml", START, options, None)
    assert trial.results is None
    assert not (tiny / "trial/results.json").exists()
    assert 0.5 < trial.valid_auc < 1
    # 41 + 61 + 7 rows of 4; the dense column through 64, 3 vectors of 4, 8 hidden, 1 logit
    assert trial.table_parameters == 109 * 4
    assert trial.parameters == 2 * 64 + (64 + 12 + 1) * 8 + 9
    judged = run_cell(tiny / "seed", tiny / "conf.yaml", START, options, "test")
    assert judged.results.split == "test"
    assert load_cell(tiny / "seed") == judged
    assert not (tiny / "seed/checkpoints").exists()


def test_a_loss_that_is_not_finite_is_a_finding_not_a_failure(tiny, run_cell):
    options = ["backbone.name=mlp", "optimizer.lr=1e30"]
    cell = run_cell(tiny / "burst", tiny / "conf.yaml", START, options, "test")
    assert cell.valid_auc is None
    assert cell.results is None


# The table -----------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    return benchmark_table.Pair(
        benchmark_table.BENCHMARKS[0], benchmark_table.CONTENDERS["mmoe"], tmp_path
    )


def test_the_best_trial_on_validation_is_judged_and_no_other(pair):
    asked = []

    def run(folder, choice, options, test):
        asked.append((folder.name, choice, test, options))
        aucs = {"trial-0": 0.70, "trial-1": None, "trial-2": 0.75}
        return made(aucs.get(folder.name, 0.8), choice, test)

    assert benchmark_table._tune_and_judge(pair, 3, 2, run) == pytest.approx(0.8)
    names = [name for name, *_ in asked]
    assert names == ["trial-0", "trial-1", "trial-2", "seed-0", "seed-1"]
    assert [test for _, _, test, _ in asked] == [None] * 3 + ["test"] * 2
    best = asked[2][1]
    assert asked[3][1] == asked[4][1] == best
    assert [options[-1] for *_, options in asked] == ["seed=0"] * 4 + ["seed=1"]


def test_a_model_of_which_no_trial_ends_well_is_told(pair):
    with pytest.raises(ValueError, match="no trial ended with a finite loss"):
        benchmark_table._tune_and_judge(pair, 2, 1, lambda *_: made(None))


def save(pair, kind, number, cell):
    folder = pair.folder(kind, number)
    folder.mkdir(parents=True)
    (folder / CELL_FILE).write_text(json.dumps(cell.model_dump(mode="json")))


def test_a_dry_run_says_what_is_left_and_runs_nothing(pair, tmp_path, capsys):
    save(pair, "trial", 0, made(0.7))
    args = (["movielens"], ["mmoe", "star"], 2, 1, 1)
    benchmark_table.bench_table(Path("none"), tmp_path, *args, dry_run=True, page=None)
    told = capsys.readouterr().out
    assert "1 of 8 cells are done" in told
    assert "movielens mmoe: 3 cells to run" in told
    assert "movielens star: 4 cells to run" in told


def test_when_all_cells_are_there_the_page_is_written_without_any_data(pair, tmp_path, capsys):
    save(pair, "trial", 0, made(0.7))
    for seed, auc in enumerate((0.80, 0.82)):
        save(pair, "seed", seed, made(auc, test=True))
    save(pair, "speed", 0, made(0.6))
    page = tmp_path / "docs/benchmark.md"
    benchmark_table.bench_table(
        Path("none"), tmp_path, ["movielens"], ["mmoe"], 1, 2, 1, False, page
    )
    text = page.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| mmoe | 0.81"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["mmoe", "0.8100 ± 0.0141", "0.8086", "0.5000 ± 0.0000"]
    assert cells[-4:] == ["7", "70", "1,000", "0.5"]
    assert "1 models with a published AUC, 1 reach it here" in text
    assert "| mmoe | 0.8100 ± 0.0141 | 0.8086 |" in capsys.readouterr().out


def test_a_model_below_its_published_figure_and_a_slow_cell_are_told(pair):
    save(pair, "trial", 0, made(0.7))
    save(pair, "seed", 0, made(0.80, test=True, seconds=130))
    text = write_page([pair], 1, 1, None)
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
        benchmark_table.bench_table(Path("none"), tmp_path, benchmarks, models, 1, 1, 1, True, None)
