"""Files that come from elsewhere cannot run code: configs, schemas, sweeps, plans, stores."""

import json
import os
import pickle

import numpy as np
import pytest
from ranks import run_ranks
from tiny import tiny_dataset, tiny_store

from msrec.data.llm.store import KnowledgeStore
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import load_config
from msrec.tools.experiment.sweep import load_sweep

pytestmark = pytest.mark.slow

ATTACKS = (
    "!!python/object/apply:os.system ['touch {trace}']",
    "!!python/object/new:os.system ['touch {trace}']",
    "!!python/name:os.system",
)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("attack", ATTACKS)
def test_yaml_names_no_python_object(tmp_path, attack):
    trace = tmp_path / "ran"
    attack = attack.format(trace=trace)
    (tmp_path / "conf.yaml").write_text(f"dataset: {attack}\n")
    (tmp_path / "sweep.yaml").write_text(f"out: {attack}\ndatasets: {{}}\n")
    (tmp_path / "dataset.yaml").write_text(f"name: {attack}\n")
    for read, place in (
        (load_config, "conf.yaml"),
        (load_sweep, "sweep.yaml"),
        (lambda path: load_schema(path.parent), "dataset.yaml"),
    ):
        with pytest.raises(ValueError, match="must have plain values without tags; found"):
            read(tmp_path / place)
    with pytest.raises(ValueError, match="dataset: the value must have plain values without tags"):
        load_config(None, [f"dataset={attack}"])
    assert not trace.exists()


def test_a_store_whose_vectors_are_a_pickle_is_refused(tmp_path):
    tiny_store(tiny_dataset(tmp_path / "tiny"), tmp_path / "store")
    trace, folder = tmp_path / "ran", tmp_path / "store/user"
    np.save(folder / "vectors.npy", np.array([Evil(trace)], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["bytes"]["vectors.npy"] = (folder / "vectors.npy").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"vectors\.npy"):
        KnowledgeStore.open(folder, verify=False)
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["pickle", "json"])
def test_a_plan_is_json_whose_words_are_only_compared(tmp_path, kind):
    from trainings import config_of, fit

    dataset = tiny_dataset(tmp_path / "tiny")
    trace, plan = tmp_path / "ran", tmp_path / "plan.json"
    if kind == "pickle":
        plan.write_bytes(pickle.dumps(Evil(trace)))
    else:
        entry = {
            "sharding_type": "os.system",
            "compute_kernel": f"touch {trace}",
            "ranks": [0],
            "shards": [{"offsets": [0, 0], "sizes": [41, 8], "placement": "rank:0/cpu"}],
        }
        modules = {"ranker.embeddings.ebc": {"user_id": entry}}
        plan.write_text(json.dumps({"format": 1, "world_size": 1, "modules": modules}))
    config = config_of(dataset, tmp_path, f"plan={plan}", "llm.store=null")
    with pytest.raises(AssertionError, match=r"plan\.json"):
        run_ranks(fit, 1, config)
    assert not trace.exists()
