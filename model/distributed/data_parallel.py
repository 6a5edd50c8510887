"""Data parallelism of the dense part: gradients of all ranks are averaged, in a fixed order."""

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardingEnv


class DenseParallel(DataParallelWrapper):  # type: ignore[misc]  # TorchRec is untyped
    """Wraps the dense part into `FixedOrderDDP`; one rank needs no gradients of others."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Moves the dense part to its device and wraps it."""
        module = dmp._dmp_wrapped_module.to(device)
        if env.process_group.size() > 1:
            sharded = list(DistributedModelParallel._sharded_parameter_names(module))
            FixedOrderDDP._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
                module, sharded
            )
            module = FixedOrderDDP(
                module,
                device_ids=None if device.type == "cpu" else [device],
                process_group=env.process_group,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
                static_graph=True,
            )
        dmp._dmp_wrapped_module = module


class FixedOrderDDP(DistributedDataParallel):
    """DDP whose buckets are the same in every step, so that a resumed run has the same sums.

    DDP begins with buckets of its own order and builds others after the first step, in the order in
    which gradients came. The place of a gradient in a bucket decides the order in which the values
    of three and more ranks are added. A run that resumes would differ in the last bits. Here the
    second buckets are built at once, in the reverse order of the parameters, which is about the
    order of the backward pass.
    """

    def __init__(self, module: torch.nn.Module, **options: Any) -> None:
        super().__init__(module, **options)
        self.reducer._push_all_rebuilt_params()
        self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list[torch.nn.Parameter], list[bool]]:
        parameters, is_sparse = super()._build_params_for_reducer()  # type: ignore[no-untyped-call]
        return parameters[::-1], is_sparse[::-1]
