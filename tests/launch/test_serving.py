"""Exports: they score as their run does, refuse what is damaged, and appear whole or not at all."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from ranks import run_ranks
from test_raw_rows import joined, raw_tables
from test_trainer import fit
from tiny import tiny_store

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.features.vocabulary import Hashed
from msrec.data.loading.collator import Collator, Window
from msrec.data.loading.id_transforms import RareIds
from msrec.data.loading.split_reader import SplitReader
from msrec.launch.config import load_config, save_config
from msrec.launch.distributed import process_group
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predictions import load_predictions
from msrec.launch.serving import export as export_module
from msrec.launch.serving import parity
from msrec.launch.serving.bf16_lowering import in_bfloat16
from msrec.launch.serving.export import export
from msrec.launch.serving.quantized_tables import Tables, TableSpec, file_of, quantised
from msrec.launch.serving.request_rows import inputs_of, part_of
from msrec.launch.serving.request_rows import joined as put_together
from msrec.launch.serving.score_file import score_file
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import open_run
from msrec.tools.bench.serve import raw_lines

RUNS = {
    "bare": [
        *("backbone.name=dlrm", "interaction.bottom_dims=[8]", "history.of=[user,item]"),
        "embeddings.rare={age: 100}",
    ],
    "full": [
        *("backbone.name=mmoe", "meta.user=true", "meta.item=true", "meta.scenario=true"),
        *("meta.rank=5", "llm_feature.kind=match", "llm_feature.dim=3"),
    ],
}


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """A dataset of raw tables with its store, a run of each kind, and their exports."""
    root = tmp_path_factory.mktemp("serving")
    raw = raw_tables(rows=3000)
    hashed = {"query": Hashed(50), "words": Hashed(40, 2)}
    write_dataset(raw, root / "data", SplitChoice("time", fractions=(0.7, 0.1, 0.2)), hashed=hashed)
    tiny_store(root / "data", root / "store")
    for name, options in RUNS.items():
        config = load_config(
            None,
            [
                *(f"dataset={root}/data", f"run_root={root}/runs", f"run_id={name}"),
                *(f"llm.store={root}/store", "trainer.global_batch=96", "trainer.epochs=2"),
                *("embeddings.dim=8", "embeddings.lr=0.05", *options),
            ],
        )
        run_ranks(fit, 1, config)
        save_config(config, config.run_dir / "config.yaml")
        with process_group("cpu") as process:
            evaluate(config.run_dir, process)
            export(config.run_dir, root / name, process, compiled=False)
    joined(raw).tail(600).write_parquet(root / "test.parquet")
    return root


@pytest.fixture(scope="session")
def scorers(app):
    return {name: Scorer(app / name) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_file_of_raw_rows_gets_the_scores_that_evaluation_gave(
    app, scorers, tmp_path, name, suffix
):
    source = app / "test.parquet"
    if suffix == "jsonl":
        source = tmp_path / "test.jsonl"
        pl.read_parquet(app / "test.parquet").write_ndjson(source)
    assert score_file(scorers[name], source, tmp_path / f"out.{suffix}") == 600
    read = pl.read_parquet if suffix == "parquet" else pl.read_ndjson
    found = read(tmp_path / f"out.{suffix}")
    wanted = load_predictions(app / "runs" / name / "predictions" / "test")
    assert (
        found["user_key"].to_list() == pl.read_parquet(app / "test.parquet")["user_key"].to_list()
    )
    np.testing.assert_allclose(found["score"], wanted.score[np.argsort(wanted.row_id)], atol=2e-3)
    assert np.std(wanted.score) > 0.05  # a constant would pass


def test_the_manifest_tells_how_far_scores_differ(app):
    told = json.loads((app / "full" / "export.json").read_text())["parity"]
    assert told["rows"] == 600
    assert 0 < told["mean_difference"] < told["largest_difference"] < 2e-3
    assert abs(told["auc_run"] - told["auc_export"]) < 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_new_users_items_and_values_are_scored_as_the_model_itself_scores_unknown_ones(
    app, scorers, name
):
    rows = (
        pl.read_parquet(app / "test.parquet")
        .head(4)
        .with_columns(
            user_key=pl.Series(["nobody", "else", "u1", "u2"]),
            item_key=pl.Series([70001, 70002, 70003, 10]),
            age=pl.Series([99, 98, 97, None]),
        )
    )
    columns = RowEncoder(app / "data").encode(rows.to_arrow(), "rows")
    scores = scorers[name].score(scorers[name].maker.rows(columns))
    with process_group("cpu") as process:
        run = open_run(app / "runs" / name, process)
        columns = RareIds(run.knowledge.is_rare).apply(columns, np.arange(4), 0)
        known = (run.knowledge.user, run.knowledge.item, run.knowledge.history)
        batch = Window(Collator(run.schema, *known), np.arange(4)[np.newaxis], columns).batch(0)
        with torch.no_grad():
            logits = run.model.eval()(batch)[1][1][:, 0]
    np.testing.assert_allclose(scores, torch.sigmoid(logits), atol=2e-3)


@pytest.mark.parametrize("name", RUNS)
def test_a_row_is_scored_alike_alone_and_among_others(app, scorers, name):
    scorer = scorers[name]
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    rows = scorer.maker.rows(scorer.raw.encode(table, "rows"))
    whole = scorer.score(rows)
    alone = np.concatenate([scorer.score(part_of(rows, at, at + 1)) for at in range(20)])
    np.testing.assert_allclose(alone, whole[:20], atol=1e-6)
    parts = [part_of(rows, start, start + 7) for start in range(0, 600, 7)]
    np.testing.assert_allclose(scorer.score(put_together(parts)), whole, atol=1e-6)


def test_an_int8_row_is_off_by_half_a_step_and_what_float16_rounds(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(50, 12) * torch.logspace(-3, 1, 50).unsqueeze(1)
    spec = TableSpec(name="t", rows=50, dim=12, kind="int8", features=["a"])
    (tmp_path / "tables").mkdir()
    np.save(file_of(tmp_path, "t"), quantised(weight, "int8"))
    tables = Tables([spec], tmp_path, ["a"])
    ids = torch.arange(50, dtype=torch.int32)
    found = tables.lookup(ids, torch.arange(51, dtype=torch.int32))
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    bound = (high - low) / 255 * 0.51 + (low.abs() + high - low) * 2**-11 + 1e-6
    assert ((found - weight).abs() <= bound).all()
    assert (found - weight).abs().max() > 1e-3
    bags = tables.lookup(ids, torch.tensor([0, 3, 3, 50], dtype=torch.int32))
    expected = torch.stack([found[:3].sum(0), torch.zeros(12), found[3:].sum(0)])
    torch.testing.assert_close(bags, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError):  # whoever makes ids checks them; this is the second look
        tables.lookup(
            torch.tensor([50], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
        )


def test_a_compiled_program_scores_as_the_one_that_is_not(app, scorers, tmp_path):
    with process_group("cpu") as process:
        export(app / "runs" / "bare", tmp_path / "compiled", process, compiled=True)
    compiled = Scorer(tmp_path / "compiled")
    assert compiled.is_compiled
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    for some in (table, table.slice(0, 1)):
        rows = compiled.maker.rows(compiled.raw.encode(some, "rows"))
        np.testing.assert_allclose(compiled.score(rows), scorers["bare"].score(rows), atol=1e-5)


def test_products_in_bfloat16_move_scores_a_little(app, scorers):
    scorer = scorers["full"]
    program, products = in_bfloat16(torch.export.load(app / "full" / "dense.pt2"))
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    rows = scorer.maker.rows(scorer.raw.encode(table, "rows"))
    inputs = scorer.pooled(inputs_of(rows, len(scorer.raw.schema.sparse)))
    with torch.no_grad():
        found = program.module()(*inputs)
    assert products >= 5
    assert found.dtype == torch.float32
    assert 1e-6 < (found - torch.from_numpy(scorer.run(inputs))).abs().max() < 5e-3
    assert len(found.unique()) > 500  # logits in bfloat16 would have a hundred values or so


def test_rows_of_the_benchmark_are_encoded_as_those_they_were_made_of(app, scorers):
    scorer = scorers["bare"]
    columns = SplitReader(app / "data", scorer.raw.schema, "test").take(np.arange(50))
    found = scorer.raw.encode(scorer.raw.table(raw_lines(scorer, columns)), "rows")
    for name in ("user", "item", "scenario", "user_id", "age", "tags", "price"):
        given, wanted = (
            of.to_pylist() if name == "tags" else of for of in (found[name], columns[name])
        )
        np.testing.assert_equal(given, wanted, err_msg=name)


def copied(app, tmp_path):
    return shutil.copytree(app / "full", tmp_path / "export")


def test_a_damaged_export_is_refused(app, tmp_path):
    folder = copied(app, tmp_path)
    path = file_of(folder, "user_id")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"user_id.npy must have the CRC-32 .* copy it again"):
        Scorer(folder)
    path.unlink()
    with pytest.raises(ValueError, match="found no file"):
        Scorer(folder)
    with pytest.raises(FileNotFoundError, match="holds no export"):
        Scorer(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 0}, "version must be 1; got 0"),
        ({"versions": {"torch": "2.0.0"}}, "torch must be 2.0.0, by which .* found 2.13.0"),
        ({"features": 3}, "export.json: features: "),
        ({"parity": None}, "a finished export; this one was not compared with its run"),
    ],
)
def test_an_export_of_other_versions_or_unfinished_is_refused(app, tmp_path, change, said):
    folder = copied(app, tmp_path)
    told = json.loads((folder / "export.json").read_text()) | change
    (folder / "export.json").write_text(json.dumps(told))
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        Scorer(folder)


def test_an_export_that_ranks_other_rows_first_is_not_written(app, tmp_path, monkeypatch):
    partial = tmp_path / ".out.partial"  # what SIGKILL leaves: the next export removes it
    partial.mkdir()
    (partial / "export.json").write_text("{}")
    monkeypatch.setattr(parity, "LARGEST_AUC_DIFFERENCE", 0.0)
    with process_group("cpu") as process, pytest.raises(ValueError, match="AUC of its run within"):
        export(app / "runs" / "bare", tmp_path / "out", process, compiled=False)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_that_could_be_taken_for_one(app, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_write_program", die)
    with process_group("cpu") as process, pytest.raises(KeyboardInterrupt):
        export(app / "runs" / "bare", tmp_path / "out", process, compiled=False)
    assert list(tmp_path.iterdir()) == []
    with process_group("cpu") as process, pytest.raises(ValueError, match="must not exist yet"):
        export(app / "runs" / "bare", app / "bare", process)
    with process_group("cpu") as process, pytest.raises(ValueError, match="must hold export.json"):
        export(app / "runs" / "bare", app / "data", process, overwrite=True)


def test_a_bad_row_is_told_and_no_file_is_written(app, scorers, tmp_path):
    lines = [row for row in pl.read_parquet(app / "test.parquet").head(3).iter_rows(named=True)]
    lines[2]["price"] = None
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="rows.jsonl: column 'price', row 2: a dense value"):
        score_file(scorers["bare"], tmp_path / "rows.jsonl", tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*out*"))
    (tmp_path / "rows.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(ValueError, match="row 1 must be an object"):
        score_file(scorers["bare"], tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
