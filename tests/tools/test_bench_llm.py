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


@pytest.fixture
def config(tmp_path):
    dataset = write_dataset(tmp_path / "d", TRAIN, users=USERS)
    llm = {"model": str(write_model(tmp_path / "model")), "dtype": "float32", "max_tokens": 600}
    config = tmp_path / "conf.yaml"
    config.write_text(yaml.safe_dump({"dataset": str(dataset), "llm": llm}))
    return config


@pytest.mark.parametrize(("level", "prompts"), [("user", 9), ("item", 6)])
def test_all_loops_give_the_same_vectors(config, capsys, findings, level, prompts):
    bench_encode(config, [], level=level, prompts=prompts, batch=4, repeats=2)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"shop: {prompts} {level}s" in printed
    assert float(re.search(r"a prompt: ([0-9.]+)", printed)[1]) > 0.99999
    numbers = re.search(
        r"computed: ([0-9,]+) by the plain loop, ([0-9,]+) by the sorted loop, ([0-9,]+) by msrec"
        r".*be ([0-9.]+) and ([0-9.]+)",
        printed,
    ).groups()
    padded, by_length, computed = (int(tokens.replace(",", "")) for tokens in numbers[:3])
    assert computed < by_length <= padded  # prompts of one data set begin alike
    assert float(numbers[3]) == pytest.approx(padded / computed, abs=0.006)
    assert float(numbers[4]) == pytest.approx(by_length / computed, abs=0.006)
    for loop in ("the plain loop", "the sorted loop"):
        prompts = findings("encode")[f"prompts: against {loop}"]
        expected = prompts["ours"] / prompts["reference"]
        assert prompts["ratio"] == pytest.approx(expected, rel=0.5)  # medians of two rounds


def test_gathering_is_measured_for_every_type(capsys, findings):
    bench_store(keys=1000, batch=64, repeats=3)
    printed = capsys.readouterr().out
    for name in ("float32", "float16", "int8"):
        assert re.search(rf"{name}, 0\.00 GB *│ *[0-9.]+ │", printed)
        assert findings("store")[f"{name}, 0.00 GB"]["ratio"] > 0
