"""Finds operations that make the host wait for a device, on the device "meta", which has no values.

Reading a value of a meta tensor is an error by itself. This also finds what is an error on no
device: copies between host and device, and tensors made from Python numbers.
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
METHODS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")


class Waits(TorchDispatchMode):
    """Lists the operations that wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        inputs, outputs = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            for tree in ((args, kwargs), result)
        )
        is_masked = name in {"index", "index_put", "index_put_", "_index_put_impl_"} and any(
            index.dtype == torch.bool for index in tree_leaves(args[1]) if index is not None
        )
        devices = {tensor.device.type for tensor in (*inputs, *outputs) if tensor.dim()}
        is_copy = name in {"_to_copy", "copy_"} and len(devices) > 1
        if name in READS or is_masked or is_copy:
            self.found.append(f"{func} of {[tuple(tensor.shape) for tensor in inputs]}")
        return result


@contextmanager
def no_waits():
    """Fails if something in the block would wait for a device."""

    def refuse(name):
        def refused(tensor, *args, **kwargs):
            raise AssertionError(f"Tensor.{name} waits for the device")

        return refused

    def tensor(data, *args, device=None, **kwargs):
        assert device is None or torch.device(device).type == "cpu", "torch.tensor waits"
        return make(data, *args, **kwargs)

    make = torch.tensor
    with mock.patch.object(torch, "tensor", tensor), Waits() as waits:
        patches = [mock.patch.object(torch.Tensor, name, refuse(name)) for name in METHODS]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()
    assert waits.found == []
