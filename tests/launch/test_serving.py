"""Exports score as their run, refuse damaged files, and appear only when they are complete."""

import json
import shutil
import time

import httpx
import numpy as np
import polars as pl
import psutil
import pytest
import torch
from ranks import run_ranks
from raw_rows import joined, raw_tables
from tiny import tiny_store
from trainings import fit

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.features.hashed_values import Hashed
from msrec.data.features.row_encoder import RowEncoder
from msrec.data.io.outputs import SCRATCH_MARK
from msrec.data.loading.collator import Collator, Window
from msrec.data.loading.id_transforms import RareIds
from msrec.data.loading.split_reader import SplitReader
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import process_group
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.scored_rows.predictions import load_predictions
from msrec.launch.serving import export as export_module
from msrec.launch.serving import parity
from msrec.launch.serving.delta.apply import point_link
from msrec.launch.serving.export import export
from msrec.launch.serving.export_folder import ExportTable
from msrec.launch.serving.lower_precision import int8_product, lower_products
from msrec.launch.serving.parity import compare_scores
from msrec.launch.serving.quantized_tables import (
    QuantizedTables,
    dequantize_rows,
    quantize_rows,
    table_path,
)
from msrec.launch.serving.request_rows import RequestRows
from msrec.launch.serving.score_file import score_file
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import open_run
from msrec.model.layers import row_groups
from msrec.model.tasks import Task
from msrec.tools.bench.harness.http_load import running_server
from msrec.tools.bench.serve import raw_lines

pytestmark = pytest.mark.slow

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
    """Folder of a dataset, its store, two runs and their exports."""
    root = tmp_path_factory.mktemp("serving")
    raw = raw_tables(rows=3000)
    tables = {"query": Hashed(50), "words": Hashed(40, 2)}
    write_dataset(
        raw, root / "data", SplitChoice("time", fractions=(0.7, 0.1, 0.2)), table_kinds=tables
    )
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
def test_scoring_a_file_gives_the_scores_of_evaluation(app, scorers, tmp_path, name, suffix):
    source = app / "test.parquet"
    if suffix == "jsonl":
        source = tmp_path / "test.jsonl"
        pl.read_parquet(app / "test.parquet").write_ndjson(source)
    assert score_file(scorers[name], source, tmp_path / f"out.{suffix}") == 600
    read = pl.read_parquet if suffix == "parquet" else pl.read_ndjson
    scored = read(tmp_path / f"out.{suffix}")
    evaluated = load_predictions(app / "runs" / name / "predictions" / "test")
    rows = pl.read_parquet(app / "test.parquet")
    assert scored["user_key"].to_list() == rows["user_key"].to_list()
    expected = evaluated.score[np.argsort(evaluated.row_id)]
    np.testing.assert_allclose(scored["score"], expected, atol=2e-3)
    assert np.std(expected) > 0.05  # a constant would pass


def test_a_history_for_a_model_that_reads_none_is_refused(scorers):
    with pytest.raises(ValueError, match="request must have no history, because the exported run"):
        scorers["full"].encoder.encode_history([], "request")


def test_manifest_holds_the_difference_of_scores(app):
    parity = json.loads((app / "full" / "export.json").read_text())["parity"]
    assert parity["rows"] == 600
    assert 0 < parity["mean_difference"] < parity["largest_difference"] < 2e-3
    of_run, of_export = parity["auc"]["label"]
    assert abs(of_run - of_export) < 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_unknown_users_items_and_values_get_the_scores_of_the_model(app, scorers, name):
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
    scores = scorers[name].score(scorers[name].encoder.encode(columns))
    with process_group("cpu") as process:
        run = open_run(app / "runs" / name, process)
        columns = RareIds(run.knowledge.is_rare).apply(columns, np.arange(4), 0)
        known = (run.knowledge.user, run.knowledge.item, run.knowledge.history)
        batch = Window(Collator(run.schema, *known), np.arange(4)[np.newaxis], columns).batch(0)
        with torch.no_grad():
            logits = run.model.eval()(batch)[1][1][:, 0]
    np.testing.assert_allclose(scores[:, 0], torch.sigmoid(logits), atol=2e-3)


@pytest.mark.parametrize("name", RUNS)
def test_score_of_a_row_does_not_depend_on_other_rows(app, scorers, name):
    scorer = scorers[name]
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    rows = scorer.encoder.encode_table(table, "rows")
    together = scorer.score(rows)
    alone = np.concatenate([scorer.score(rows.cut(row, row + 1)) for row in range(20)])
    np.testing.assert_allclose(alone, together[:20], atol=1e-6)
    parts = [rows.cut(start, start + 7) for start in range(0, 600, 7)]
    np.testing.assert_allclose(scorer.score(RequestRows.join(parts)), together, atol=1e-6)


def test_error_of_int8_rows_is_half_a_step_plus_rounding_to_float16(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(50, 12) * torch.logspace(-3, 1, 50).unsqueeze(1)
    table = ExportTable(name="t", rows=50, dim=12, kind="int8", features=["a"])
    quantized = quantize_rows(weight, "int8")
    np.save(table_path(tmp_path, "t"), quantized)
    tables = QuantizedTables([table], tmp_path, ["a"])
    ids = torch.arange(50, dtype=torch.int32)
    rows = tables.lookup(ids, torch.arange(51, dtype=torch.int32))
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    bound = (high - low) / 255 * 0.51 + (low.abs() + high - low) * 2**-11 + 1e-6
    assert ((rows - weight).abs() <= bound).all()
    torch.testing.assert_close(torch.from_numpy(dequantize_rows(quantized, "int8")), rows)
    assert (rows - weight).abs().max() > 1e-3
    bags = tables.lookup(ids, torch.tensor([0, 3, 3, 50], dtype=torch.int32))
    expected = torch.stack([rows[:3].sum(0), torch.zeros(12), rows[3:].sum(0)])
    torch.testing.assert_close(bags, expected, atol=1e-5, rtol=1e-5)
    one_bag = torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(RuntimeError):
        tables.lookup(torch.tensor([50], dtype=torch.int32), one_bag)


def test_compiled_program_gives_the_same_scores(app, scorers, tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "MAX_SPARE_PRODUCTS", 0)  # compile sorted rows too
    with process_group("cpu") as process:
        export(app / "runs" / "full", tmp_path / "compiled", process, compiled=True)
    assert "_grouped_mm" in str(torch.export.load(tmp_path / "compiled" / "dense.pt2").graph)
    compiled = Scorer(tmp_path / "compiled")
    assert compiled.is_compiled
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    for part in (table, table.slice(0, 1)):
        rows = compiled.encoder.encode_table(part, "rows")
        np.testing.assert_allclose(compiled.score(rows), scorers["full"].score(rows), atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "marks"), [("bfloat16", "torch.bfloat16"), ("int8", "_int_mm.default")]
)
def test_larger_products_of_lower_precision_move_scores_a_little(app, scorers, dtype, marks):
    scorer = scorers["full"]
    program = lower_products(torch.export.load(app / "full" / "dense.pt2"), dtype)
    assert marks in str(program.graph)
    assert "mm.default](args = (%relu" in str(program.graph)  # of small ones in float32
    table = pl.read_parquet(app / "test.parquet").to_arrow()
    inputs = scorer.look_up(scorer.tensors(scorer.encoder.encode_table(table, "rows")))
    with torch.no_grad():
        scores = program.module()(*inputs)
        alone = program.module()(*(part[7:9] for part in inputs))
    torch.testing.assert_close(alone, scores[7:9], atol=1e-5, rtol=1e-5)  # of other rows
    assert scores.dtype == torch.float32
    assert 1e-6 < (scores - torch.from_numpy(scorer.run_program(inputs))).abs().max() < 1e-2
    assert len(scores.unique()) > 500  # logits in bfloat16 would have about a hundred values


def test_error_of_an_int8_product_is_half_a_step_of_each_factor():
    torch.manual_seed(0)
    x, weight = torch.randn(20, 133) * torch.logspace(-3, 3, 20)[:, None], torch.randn(133, 40)
    x[3] = 0
    step_x = x.abs().amax(1, keepdim=True) / 127
    step_w = weight.abs().amax(0, keepdim=True) / 127
    bound = x.abs().sum(1, keepdim=True) * step_w / 2 + weight.abs().sum(0) * step_x / 2
    bound = bound + 133 * step_x * step_w / 4
    product = int8_product(x, weight)
    error = (product - x.double() @ weight.double()).abs()
    assert (error <= bound * (1 + 1e-4)).all()
    assert (product[3] == 0).all()
    assert error.max() > 0


def test_raw_rows_of_the_benchmark_encode_to_their_columns(app, scorers):
    scorer = scorers["bare"]
    encoder = scorer.encoder.row_encoder
    columns = SplitReader(app / "data", encoder.schema, "test").take(np.arange(50))
    encoded = encoder.encode(encoder.table(raw_lines(scorer, columns)), "rows")
    for name in ("user", "item", "scenario", "user_id", "age", "price"):
        np.testing.assert_equal(encoded[name], columns[name], err_msg=name)
    np.testing.assert_equal(encoded["tags"].to_pylist(), columns["tags"].to_pylist())


def copy_export(app, tmp_path):
    return shutil.copytree(app / "full", tmp_path / "export")


def test_damaged_export_is_refused(app, tmp_path):
    folder = copy_export(app, tmp_path)
    path = table_path(folder / "tables", "user_id")
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
    ("change", "message"),
    [
        ({"version": 1, "labels": None}, "version must be 3; got 1. Export again"),
        ({"versions": {"torch": "2.0.0"}}, "torch must be 2.0.0, because .* found 2.13.0"),
        ({"features": 3}, "export.json: features: "),
        ({"parity": None}, "a finished export; this one was not compared with its run"),
    ],
)
def test_export_of_other_versions_or_unfinished_is_refused(app, tmp_path, change, message):
    folder = copy_export(app, tmp_path)
    manifest = json.loads((folder / "export.json").read_text()) | change
    (folder / "export.json").write_text(json.dumps(manifest))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Scorer(folder)


def test_export_with_another_auc_is_not_written(app, tmp_path, monkeypatch):
    partial = tmp_path / ".out.partial"  # left by a killed export; the next one removes it
    (partial / "new").mkdir(parents=True)
    (partial / "new" / "export.json").write_text("{}")
    (partial / SCRATCH_MARK).touch()
    monkeypatch.setattr(parity, "LARGEST_MEAN_DIFFERENCE", 0.0)
    with (
        process_group("cpu") as process,
        pytest.raises(ValueError, match="scores of its run within"),
    ):
        export(app / "runs" / "bare", tmp_path / "out", process, compiled=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "moved", "is_good"),
    [
        (60, 1e-4, True),  # a pair changes its order, 1 / 500
        (60, 0.02, False),
        (20_000, 1e-6, True),
        (20_000, 0.02, False),
    ],
)
def test_parity_is_judged_by_scores_and_by_what_the_number_of_rows_allows(rows, moved, is_good):
    label = (np.arange(rows) % 6 == 0).astype(np.float32)
    run = np.linspace(0.2, 0.4, rows, dtype=np.float32)
    run[5] = run[6] + 1e-5
    export = run + moved * np.resize([1, -1], rows).astype(np.float32)
    arguments = ([Task("click")], *(x[:, np.newaxis] for x in (label, run, export)), "test")
    if is_good:
        compared = compare_scores(*arguments)
        assert compared.auc_difference != 0 or rows > 60
    else:
        with pytest.raises(ValueError, match="scores of its run within"):
            compare_scores(*arguments)


def test_many_rows_may_not_change_the_auc():
    label = (np.arange(20_000) % 6 == 0).astype(np.float32)
    run = np.full(20_000, 0.3, np.float32)
    export = run + 1e-4 * label
    arguments = ([Task("click")], *(x[:, np.newaxis] for x in (label, run, export)), "test")
    with pytest.raises(ValueError, match="the AUC of each label within 0.0001"):
        compare_scores(*arguments)


def test_killed_export_leaves_no_folder(app, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "write_program", die)
    with process_group("cpu") as process, pytest.raises(KeyboardInterrupt):
        export(app / "runs" / "bare", tmp_path / "out", process, compiled=False)
    assert list(tmp_path.iterdir()) == []
    with process_group("cpu") as process, pytest.raises(ValueError, match="must not exist yet"):
        export(app / "runs" / "bare", app / "bare", process)
    with process_group("cpu") as process, pytest.raises(ValueError, match="overlaps"):
        export(app / "runs" / "bare", app / "data", process, overwrite=True)


def test_bad_row_is_named_and_no_file_is_written(app, scorers, tmp_path):
    lines = list(pl.read_parquet(app / "test.parquet").head(3).iter_rows(named=True))
    lines[2]["price"] = None
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="rows.jsonl: column 'price', row 2: a dense value"):
        score_file(scorers["bare"], tmp_path / "rows.jsonl", tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*out*"))
    (tmp_path / "rows.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(ValueError, match="row 1 must be an object"):
        score_file(scorers["bare"], tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    repeated = json.dumps(lines[0])[:-1] + ', "price": 2.0}'
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(lines[0])}\n{repeated}\n")
    with pytest.raises(ValueError, match="jsonl: row 1 must be JSON .* has the key 'price' twice"):
        score_file(scorers["bare"], tmp_path / "rows.jsonl", tmp_path / "out.jsonl")


def test_workers_share_a_socket_and_metrics_follow_a_link_and_are_replaced(app, scorers, tmp_path):
    rows = pl.read_parquet(app / "test.parquet").head(2)
    body, link = json.dumps({"rows": rows.to_dicts()}), tmp_path / "current"
    link.symlink_to(app / "bare")
    with running_server(link, "--workers", "2", "--drain-s", "0") as port:

        def answers(path, content=None):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                return client.post(path, content=content) if content else client.get(path)

        scores = [answers("/score", body) for _ in range(20)]
        assert {answer.status_code for answer in scores} == {200}
        assert 'msrec_requests_total{status="200"} 20.0' in answers("/metrics").text.splitlines()
        workers = [
            child
            for server in psutil.Process().children()
            for child in server.children()
            if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) == 2
        time.sleep(10)  # one that dies earlier would end the server
        workers[0].kill()
        time.sleep(1)
        assert answers("/score", body).json() == scores[0].json()
        point_link(link, app / "full")
        deadline = time.monotonic() + 60
        while {answers("/health").json()["version"] for _ in range(20)} != {
            scorers["full"].version
        }:
            assert time.monotonic() < deadline
        full = scorers["full"].score(scorers["full"].encoder.encode_table(rows.to_arrow(), "rows"))
        np.testing.assert_allclose(answers("/score", body).json()["scores"], full[:, 0], atol=1e-6)
        assert np.abs(scores[0].json()["scores"] - full[:, 0]).max() > 1e-3
    assert psutil.wait_procs(workers, timeout=5)[1] == []
