"""The LLM's benchmarks say what they measured, and that both ways give the same vectors."""

import re

import pytest
import yaml
from llm_data import write_dataset, write_model
from test_encode import TRAIN, USERS

from msrec.tools.bench.llm import bench_encode, bench_store


def test_both_loops_give_the_same_vectors(tmp_path, capsys):
    dataset = write_dataset(tmp_path / "d", TRAIN, users=USERS)
    llm = {"model": str(write_model(tmp_path / "model")), "dtype": "float32", "max_tokens": 600}
    config = tmp_path / "conf.yaml"
    config.write_text(yaml.safe_dump({"dataset": str(dataset), "llm": llm}))
    bench_encode(config, [], prompts=9, batch=4, repeats=2)
    told = capsys.readouterr().out
    assert "shop: 9 users" in told
    assert float(re.search(r"a user: ([0-9.]+)", told.replace("\n", " "))[1]) > 0.99999
    padded, computed, bound = re.search(
        r"computed: ([0-9,]+) by the plain loop, ([0-9,]+) by msrec.*be ([0-9.]+)",
        told.replace("\n", " "),
    ).groups()
    padded, computed = (int(tokens.replace(",", "")) for tokens in (padded, computed))
    assert computed < padded  # nine prompts of one data set begin alike
    assert float(bound) == pytest.approx(padded / computed, abs=0.006)
    plain, ours = re.findall(r"(?:plain loop|msrec) *│ *([0-9.]+)", told)
    ratio = float(re.search(r"msrec.*│ *([0-9.]+) │$", told, re.MULTILINE)[1])
    assert ratio == pytest.approx(float(ours) / float(plain), rel=0.5)  # medians of two rounds


def test_gathering_is_told_for_every_type(capsys):
    bench_store(keys=1000, batch=64, repeats=3)
    told = capsys.readouterr().out
    for name in ("float32", "float16", "int8"):
        assert re.search(rf"{name} *│ *0\.00 │ *[0-9.]+ │ *[0-9]+%", told)
