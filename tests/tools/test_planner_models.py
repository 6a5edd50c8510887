"""Plans of any TorchRec model: its tables and paths, and plans back in stock TorchRec."""

import ast
import json
import subprocess
import sys
import types

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec import planner
from msrec.model.distributed.sharding import sharders
from msrec.tools.planner.command.build_request import request_from_options
from msrec.tools.planner.command.plan_command import plan_command
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.sources.module_tables import build_on_meta, dense_parameters_of
from msrec.tools.planner.torchrec_times import meta_collection, topology


def bags(*names, rows=1000, dim=16, **options):
    configs = [
        EmbeddingBagConfig(name=n, embedding_dim=dim, num_embeddings=rows, feature_names=[n])
        for n in names
    ]
    return EmbeddingBagCollection(tables=configs, **options)


class Model(nn.Module):
    """Weighted and plain bags, sequences, three precisions, and a dense part, at deep paths."""

    def __init__(self):
        super().__init__()
        self.sparse = nn.Module()
        self.sparse.ebc = bags("a", "b", rows=300_000_000, dim=64)
        self.sparse.weighted = bags("w", is_weighted=True)
        configs = [
            EmbeddingBagConfig(
                name=name,
                embedding_dim=32,
                num_embeddings=10,
                feature_names=[f"{name}1", f"{name}2"],
                data_type=data_type,
            )
            for name, data_type in (("small", DataType.FP16), ("tiny", DataType.INT8))
        ]
        self.towers = nn.ModuleList([EmbeddingBagCollection(tables=configs)])
        sequence = EmbeddingConfig(
            name="seq", embedding_dim=8, num_embeddings=50, feature_names=["s"]
        )
        self.history = EmbeddingCollection(tables=[sequence])
        self.over = nn.Linear(10, 3)


def no_module():
    return 7


def fails():
    raise RuntimeError("no GPU")


def dense_only():
    return nn.Linear(2, 2)


@pytest.fixture
def models(monkeypatch):
    module = types.ModuleType("models")
    module.Model, module.no_module, module.fails = Model, no_module, fails
    monkeypatch.setitem(sys.modules, "models", module)


def test_tables_of_a_model_have_its_paths_kinds_and_precisions(models):
    model = build_on_meta("models:Model")
    tables = {table.name: table for table in planner.tables_of(model, {"seq": 20.0})}
    assert {name: table.module for name, table in tables.items()} == {
        "a": "sparse.ebc",
        "b": "sparse.ebc",
        "w": "sparse.weighted",
        "small": "towers.0",
        "tiny": "towers.0",
        "seq": "history",
    }
    assert (tables["a"].rows, tables["a"].dim, tables["small"].features) == (300_000_000, 64, 2)
    found = {n: (t.kind, t.weighted, t.precision, t.pooling) for n, t in tables.items()}
    assert found["w"] == ("pooled", True, "fp32", 1.0)
    assert found["small"] == ("pooled", False, "fp16", 1.0)
    assert found["tiny"] == ("pooled", False, "int8", 1.0)
    assert found["seq"] == ("sequence", False, "fp32", 20.0)
    assert tables["tiny"].num_bytes == 10 * (32 + 8)
    assert dense_parameters_of(model) == 10 * 3 + 3
    plan = planner.plan(list(tables.values()), gpus_per_node=2)
    assert {m: set(of) for m, of in plan.modules.items()} == {
        "sparse.ebc": {"a", "b"},
        "sparse.weighted": {"w"},
        "towers.0": {"small", "tiny"},
        "history": {"seq"},
    }


def test_a_model_is_planned_from_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torchrec.modules.embedding_configs import EmbeddingBagConfig\n"
        "from torchrec.modules.embedding_modules import EmbeddingBagCollection\n"
        "import torch\n"
        "def build():\n"
        "    t = EmbeddingBagConfig(name='big', embedding_dim=128, num_embeddings=10**9,\n"
        "                           feature_names=['x'])\n"
        "    net = torch.nn.Module()\n"
        "    net.deep = torch.nn.ModuleDict({'ebc': EmbeddingBagCollection(tables=[t])})\n"
        "    net.dense = torch.nn.Linear(1000, 10)\n"
        "    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    request = request_from_options(PlanOptions(model="mine:build"))
    assert request.dense.fixed["dense parameters"] == 4 * 10_010
    assert plan_command(PlanOptions(model="mine:build", set_=["big.pooling=3"]))
    saved = json.loads((tmp_path / "plan.json").read_text())
    assert list(saved["modules"]) == ["deep.ebc"]
    assert saved["tables"][0]["rows"] == 10**9
    for factory, sentence in (
        ("mine", "must be package.module:factory; got 'mine'"),
        ("mine:absent", "must be importable; module 'mine' has no attribute 'absent'"),
        ("nothing:here", "must be importable; No module named 'nothing'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            request_from_options(PlanOptions(model=factory))
    with pytest.raises(ValueError, match="must have --model or a file, not both"):
        request_from_options(PlanOptions(tmp_path / "mine.py", model="mine:build"))


def test_models_that_cannot_be_planned_are_refused(models):
    with pytest.raises(ValueError, match="must return a torch module; it returned 7"):
        build_on_meta("models:no_module")
    with pytest.raises(ValueError, match="it raised RuntimeError: no GPU"):
        build_on_meta("models:fails")
    with pytest.raises(ValueError, match="must have an EmbeddingBagCollection"):
        planner.tables_of(dense_only())
    twice = nn.ModuleDict({"x": bags("a"), "y": bags("a")})
    with pytest.raises(ValueError, match="a is in 'x' and in 'y'"):
        planner.tables_of(twice)
    with pytest.raises(ValueError, match="table 'odd' of the model: dim: .* multiple of 4"):
        planner.tables_of(bags("odd", dim=10))
    with pytest.raises(ValueError, match="pooling must be of tables of the model; got 'z'"):
        planner.tables_of(bags("a"), {"z": 2})


# Back in stock TorchRec ------------------------------------------------------------------------

NAMES = ["a", "b", "c"]


def at_path(path, device="meta", **changes):
    model = nn.Module()
    where = model
    *folders, last = path.split(".")
    for name in folders:
        setattr(where, name, nn.Module())
        where = getattr(where, name)
    setattr(where, last, bags(*NAMES, **({"device": torch.device(device)} | changes)))
    return model


def saved_plan(tmp_path, path, **changes):
    shardings = {"a": "table_wise", "b": "row_wise", "c": "table_wise"}
    tables = [
        table.model_copy(update={"sharding": shardings[table.name]})
        for table in planner.tables_of(at_path(path, **changes))
    ]
    file = tmp_path / f"{path}.json"
    plan = planner.plan(tables, gpu=load_hardware("cpu"), gpus_per_node=2, batch=64)
    planner.save_plan(plan, file)
    return file


def sharded(rank, world_size, file, path):
    """Shards a model by a plan file and returns types and vectors of its collection."""
    torch.manual_seed(0)
    model = at_path(path, device="cpu")
    expected = model.get_submodule(path)
    ids = KeyedJaggedTensor(NAMES, torch.tensor([1, 999, 500]), lengths=torch.ones(3).int())
    before = expected(ids).values().detach()
    plan = planner.load_plan(file, model)
    dmp = DistributedModelParallel(
        model, device=torch.device("cpu"), plan=plan, sharders=sharders(), init_parameters=False
    )
    collection = dmp.module.get_submodule(path)
    specs = {name: sorted(spec.ranks or []) for name, spec in plan.plan[path].items()}
    return type(collection).__name__, specs, before.shape


@pytest.mark.slow
@pytest.mark.parametrize("path", ["ebc", "sparse.embedding_bag_collection"])
def test_a_plan_shards_the_model_under_its_real_path(tmp_path, path):
    file = saved_plan(tmp_path, path)
    for name, specs, _ in run_ranks(sharded, 2, file, path):
        assert name == "ShardedEmbeddingBagCollection"
        assert specs["b"] == [0, 1]


def test_a_plan_of_another_model_is_refused(tmp_path):
    file = saved_plan(tmp_path, "ebc")
    assert set(planner.load_plan(file, at_path("ebc")).plan) == {"ebc"}
    other = at_path("sparse.embedding_bag_collection")
    with pytest.raises(
        ValueError,
        match=r"of the plan must be in the model too, .* 'ebc' is not, the model has "
        r"'sparse.embedding_bag_collection'.* --model",
    ):
        planner.load_plan(file, other)
    more = at_path("ebc")
    more.second = bags("d", device=torch.device("meta"))
    with pytest.raises(
        ValueError, match="of the model must be in the plan too, .* 'second' is not"
    ):
        planner.load_plan(file, more)
    with pytest.raises(ValueError, match=r"table ebc: a must have the planned size of 1,000 rows"):
        planner.load_plan(file, at_path("ebc", rows=999))
    fewer = nn.ModuleDict({"ebc": bags("a", "b", device=torch.device("meta"))})
    with pytest.raises(ValueError, match="table ebc: c of the plan must be in the model too"):
        planner.load_plan(file, fewer)
    extra = nn.ModuleDict({"ebc": bags(*NAMES, "d", device=torch.device("meta"))})
    with pytest.raises(ValueError, match="table ebc: d of the model must be in the plan too"):
        planner.load_plan(file, extra)
    changed = json.loads(file.read_text()) | {"batch": 7}
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="does not match its hash"):
        planner.load_plan(tmp_path / "changed.json", at_path("ebc"))
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a plan written by msrec plan"):
        planner.load_plan(tmp_path / "no.json", at_path("ebc"))
    with pytest.raises(FileNotFoundError, match="there is none"):
        planner.load_plan(tmp_path / "absent.json", at_path("ebc"))
    with pytest.raises(FileExistsError):
        planner.save_plan(planner.plan(planner.tables_of(more)), file)


def test_constraints_give_torchrecs_planner_the_same_shardings(tmp_path):
    tables = [
        planner.TableLoad(name="a", rows=1000, dim=128, pooling=7, sharding="table_wise"),
        planner.TableLoad(name="b", rows=9000, dim=64, features=2, sharding="row_wise"),
        planner.TableLoad(name="c", rows=900, dim=128, sharding="column_wise", min_partition=64),
        planner.TableLoad(name="d", rows=10**6, dim=64, kernel="fused_uvm_caching"),
    ]
    hardware = planner.load_hardware("h100")
    plan = planner.plan(tables, gpus_per_node=2, batch=512)
    source = planner.constraints_source(plan, tables)
    ast.parse(source)
    names: dict[str, object] = {}
    exec(source, names)
    constraints = names["constraints"]
    assert constraints["a"].pooling_factors == [7]
    assert constraints["b"].pooling_factors == [1, 1]
    assert constraints["c"].min_partition == 64
    assert constraints["d"].cache_params.load_factor == plan.tables[3].load_factor
    model = nn.ModuleDict({"ebc": meta_collection(tables, "rowwise_adagrad")})
    theirs = EmbeddingShardingPlanner(
        topology=topology(hardware, 2, 2),
        batch_size=512,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(0.05),
        debug=False,
    ).plan(model, [EmbeddingBagCollectionSharder()])
    for table in plan.tables:
        spec = theirs.plan["ebc"][table.name]
        assert (spec.sharding_type, spec.compute_kernel) == (table.sharding, table.kernel)
    assert len(theirs.plan["ebc"]["c"].sharding_spec.shards) == 2


def test_the_planner_is_imported_without_heavy_libraries():
    heavy = ["torch", "torchrec", "torchx", "transformers", "polars", "pyarrow"]
    code = (
        "import sys, time; from msrec import planner; "
        "t = planner.TableLoad(name='t', rows=10**6, dim=64); planner.plan([t]); "
        f"print(time.process_time(), [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = done.stdout.split(maxsplit=1)
    assert modules.strip() == "[]"
    assert float(seconds) < 3
