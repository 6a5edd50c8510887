"""Tables in float16 and quantised communication, against formulas and exact communication."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from tiny import tiny_dataset, tiny_schema

from msrec.data.loading.loader import RankShare, open_loader
from msrec.model.distributed.optimizers import optimizers
from msrec.model.distributed.planning import plan_sharding
from msrec.model.distributed.sharding import comms_codecs, shard
from msrec.model.distributed.table_options import Comms, TableOptions
from msrec.model.distributed.tables import fuse_optimizer
from msrec.model.embeddings import Embeddings, TableType, fill_rows

pytestmark = pytest.mark.slow

CPU, DIM, STD, LR, STEPS = torch.device("cpu"), 8, 0.1, 0.05, 3
COLLECTIVES = (
    *("all_to_all_single", "reduce_scatter", "reduce_scatter_tensor"),
    *("all_gather", "all_gather_into_tensor"),
)
"""Collectives by which TorchRec sends vectors and their gradients."""


class Case(NamedTuple):
    """Tables, and the size of the gradients that they get."""

    dtype: TableType = "fp32"
    comms: Comms = "fp32"
    sharding: str = "table_wise"
    gradient: float = 1.0


class Tables(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.embeddings = Embeddings(tiny_schema(), DIM, dtype=dtype)
        self.unused = torch.nn.Parameter(torch.zeros(()))  # the dense part must not be empty

    def forward(self, sparse):
        return self.embeddings(sparse) + 0 * self.unused


def trained(rank, world_size, dataset, case):
    """Tables by name and first row, their vectors of a batch, and the bytes of floats sent."""
    sent = []
    for name in COLLECTIVES:
        count_floats(name, sent)
    tables = TableOptions(
        *("rowwise_adagrad", LR, 10**6, dict.fromkeys(tiny_schema().tables, case.sharding)),
        comms=case.comms,
    )
    model = Tables(case.dtype)
    fuse_optimizer(model.embeddings.ebc, tables, CPU)
    plan = plan_sharding(model, tables, CPU, world_size)
    dmp = shard(model, plan, CPU, STD, seed=3, comms=case.comms)
    optimizer = optimizers(dmp, tables, lr=1.0, weight_decay=0.0)
    share = RankShare(rank, world_size)
    batches = list(open_loader(dataset, "train", 64, share=share, shuffle=False).batches())
    for batch in batches[:STEPS]:
        optimizer.zero_grad()
        (case.gradient * dmp(batch.sparse).sin().mean()).backward()
        optimizer.step()
    floats = sum(sent)
    vectors = dmp(batches[0].sparse).detach()
    rows = {
        (name.split(".")[-2], part.metadata.shard_offsets[0]): part.tensor.numpy().copy()
        for name, value in dmp.state_dict().items()
        if hasattr(value, "local_shards")
        for part in value.local_shards()
    }
    states = [
        part.tensor.dtype
        for state in dmp.fused_optimizer.state_dict()["state"].values()
        for value in state.values()
        for part in value.local_shards()
    ]
    return rows, vectors.numpy(), floats, states


def count_floats(name, sent):
    """Notes the bytes of all float tensors that a collective reads or writes."""
    original = getattr(dist, name)

    def counted(*args, **kwargs):
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        sent.extend(x.nbytes for x in leaves if torch.is_tensor(x) and x.is_floating_point())
        return original(*args, **kwargs)

    setattr(dist, name, counted)


def tables_of(ranks):
    rows = {key: part for own, *_ in ranks for key, part in own.items()}
    return {
        table: np.concatenate([rows[key] for key in sorted(rows) if key[0] == table])
        for table in tiny_schema().tables
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", rows=400)


def by_formula(dataset):
    """Row-wise Adagrad on float16 weights: each update is rounded to the nearest number."""
    weights, moments = {}, {}
    for table, rows in tiny_schema().tables.items():
        weights[table] = torch.empty(rows, DIM)
        fill_rows(weights[table], table, 0, STD, seed=3)
        weights[table], moments[table] = weights[table].half(), torch.zeros(rows)
    for batch in list(open_loader(dataset, "train", 64, shuffle=False).batches())[:STEPS]:
        bags, leaves = [], {}
        for feature in tiny_schema().sparse:
            leaf = leaves[feature.table] = weights[feature.table].float().requires_grad_()
            ids = batch.sparse[feature.name]
            offsets = ids.offsets()[:-1].long()
            bags.append(
                torch.nn.functional.embedding_bag(ids.values().long(), leaf, offsets, mode="mean")
            )
        gradients = torch.autograd.grad(torch.stack(bags, 1).sin().mean(), list(leaves.values()))
        for (table, leaf), g in zip(leaves.items(), gradients, strict=True):
            moments[table] += g.square().mean(dim=1)
            update = LR * g / (moments[table].sqrt() + 1e-8).unsqueeze(1)
            weights[table] = (leaf.detach() - update).half()
    return weights


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_float16_tables_round_each_update_and_keep_a_float32_state(dataset, sharding, world_size):
    ranks = run_ranks(trained, world_size, dataset, Case("fp16", sharding=sharding))
    for table, expected in by_formula(dataset).items():
        ours = tables_of(ranks)[table]
        assert ours.dtype == np.float16
        np.testing.assert_allclose(ours, expected.numpy(), rtol=2**-10, atol=1e-6)  # a last digit
    assert {dtype for *_, states in ranks for dtype in states} == {torch.float32}
    assert {vectors.dtype.name for _, vectors, *_ in ranks} == {"float32"}


@pytest.mark.parametrize("gradient", [1.0, 1e-4], ids=["usual", "tiny"])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_quantised_communication_is_near_the_exact_one_and_sends_half(dataset, sharding, gradient):
    """Tiny gradients, of 1e-7 and less, would lose their digits in float16."""
    exact, rough = (
        run_ranks(trained, 2, dataset, Case("fp32", comms, sharding, gradient))
        for comms in ("fp32", "fp16")
    )
    for table, expected in tables_of(exact).items():
        ours = tables_of(rough)[table]
        assert (ours != expected).any()
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=4e-3 * STEPS * LR)
    for (_, vectors, *_), (_, expected, *_) in zip(rough, exact, strict=True):
        np.testing.assert_allclose(vectors, expected, rtol=1e-3, atol=4e-3 * STEPS * LR)
    for (_, _, sent, _), (_, _, usual, _) in zip(rough, exact, strict=True):
        assert 0 < sent == usual / 2


def test_vectors_travel_in_float16_and_gradients_in_bfloat16():
    assert comms_codecs("fp32") is None
    for codecs in comms_codecs("fp16").values():
        assert codecs.forward.quantized_dtype == torch.float16
        assert codecs.backward.quantized_dtype == torch.bfloat16
