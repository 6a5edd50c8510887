"""The LLM's benches: both loops give the same vectors, and every type of store is measured."""

import json
import re

import pytest
import torch
import yaml
from llm_data import TRAIN, USERS, write_dataset, write_model

from msrec.tools.bench.encode import bench_encode
from msrec.tools.bench.harness import report
from msrec.tools.bench.store import bench_store

pytestmark = pytest.mark.slow


@pytest.fixture
def findings(tmp_path, monkeypatch):
    """Read the findings of a bench that ran in a scratch folder, by their names."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def read(name):
        written = json.loads((report.OUT / f"{name}.json").read_text())
        return {finding["what"]: finding for finding in written["findings"]}

    yield read
    torch.set_num_threads(threads)


def test_both_loops_give_the_same_vectors(tmp_path, capsys, findings):
    dataset = write_dataset(tmp_path / "d", TRAIN, users=USERS)
    llm = {"model": str(write_model(tmp_path / "model")), "dtype": "float32", "max_tokens": 600}
    config = tmp_path / "conf.yaml"
    config.write_text(yaml.safe_dump({"dataset": str(dataset), "llm": llm}))
    bench_encode(config, [], prompts=9, batch=4, repeats=2)
    printed = capsys.readouterr().out
    assert "shop: 9 users" in printed
    assert float(re.search(r"a user: ([0-9.]+)", printed.replace("\n", " "))[1]) > 0.99999
    padded, computed, bound = re.search(
        r"computed: ([0-9,]+) by the plain loop, ([0-9,]+) by msrec.*be ([0-9.]+)",
        printed.replace("\n", " "),
    ).groups()
    padded, computed = (int(tokens.replace(",", "")) for tokens in (padded, computed))
    assert computed < padded  # nine prompts of one data set begin alike
    assert float(bound) == pytest.approx(padded / computed, abs=0.006)
    prompts = findings("encode")["prompts: against the plain loop"]
    expected = prompts["ours"] / prompts["reference"]
    assert prompts["ratio"] == pytest.approx(expected, rel=0.5)  # medians of two rounds


def test_gathering_is_measured_for_every_type(capsys, findings):
    bench_store(keys=1000, batch=64, repeats=3)
    printed = capsys.readouterr().out
    for name in ("float32", "float16", "int8"):
        assert re.search(rf"{name}, 0\.00 GB *│ *[0-9.]+ │", printed)
        assert findings("store")[f"{name}, 0.00 GB"]["ratio"] > 0
