"""Smallest use of each library, on the CPU."""

import pytest
import torch

from msrec.launch.distributed import process_group
from msrec.tools import device_probe
from msrec.tools.device_probe import lookup_and_update, sum_over_one_rank

CPU = torch.device("cpu")


def test_lookup_and_update_equal_their_formulas():
    assert lookup_and_update(CPU) < 1e-6


def test_a_wrong_update_is_an_error(monkeypatch):
    monkeypatch.setattr(device_probe, "EPS", 0.5)
    kernel = device_probe.SplitTableBatchedEmbeddingBagsCodegen

    def without_eps(*args, eps, **options):
        return kernel(*args, eps=1e-8, **options)

    monkeypatch.setattr(device_probe, "SplitTableBatchedEmbeddingBagsCodegen", without_eps)
    with pytest.raises(ValueError, match="must equal their formulas"):
        lookup_and_update(CPU)


def test_a_sum_over_one_rank_leaves_the_values():
    with process_group("cpu"):
        assert "gloo" in sum_over_one_rank(CPU)
