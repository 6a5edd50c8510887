"""Training with managed features: ranks, resume, evaluation, and rows that get new ids."""

import numpy as np
import pytest
import torch
from managed_data import ROWS, managed_dataset
from ranks import run_ranks
from trainings import config_of, fit, fit_partly_then_resume

from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow

OPTIONS = ["embeddings.eviction=lru", "embeddings.eviction_every_steps=5"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return managed_dataset(tmp_path_factory.mktemp("data") / "tiny")


def maps(weights):
    return {name: value for name, value in weights.items() if ".managed.maps." in name}


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_two_ranks_have_the_losses_and_the_map_of_one_rank(dataset, tmp_path, sharding):
    tables = "{" + f"user_id: {sharding}, item_id: {sharding}" + "}"
    options = [*OPTIONS, f"embeddings.sharding={tables}"]
    one, _, of_one = run_ranks(fit, 1, config_of(dataset, tmp_path / "1", *options))[0]
    both = run_ranks(fit, 2, config_of(dataset, tmp_path / "2", *options))
    np.testing.assert_allclose(both[0][0], one, atol=1e-4)
    for _, _, of_two in both:
        assert len(maps(of_one)) == len(maps(of_two)) > 8
        for name, value in maps(of_two).items():
            np.testing.assert_array_equal(value, of_one[name], err_msg=name)


@pytest.mark.parametrize(("eviction", "steps"), [("lfu", 7), ("lru", 10), ("distance", 13)])
def test_a_resumed_run_equals_one_that_was_never_stopped(dataset, tmp_path, eviction, steps):
    options = [f"embeddings.eviction={eviction}", "embeddings.eviction_every_steps=5"]
    whole = run_ranks(fit, 2, config_of(dataset, tmp_path / "whole", *options))
    config = config_of(dataset, tmp_path / "resumed", *options)
    resumed = run_ranks(fit_partly_then_resume, 2, config, steps)
    for (losses, _, expected), (rest, _, found) in zip(whole, resumed, strict=True):
        assert losses[steps:] == rest
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
