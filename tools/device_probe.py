"""Smallest use of a device by each library: torch, FBGEMM's tables, and the process group.

`python -m msrec.tools.device_probe` runs it on the GPU, for `msrec doctor`.
"""

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from msrec.launch.distributed import process_group

PLACES = {
    "cpu": (EmbeddingLocation.HOST, ComputeDevice.CPU),
    "cuda": (EmbeddingLocation.DEVICE, ComputeDevice.CUDA),
}
"""Kind of device -> where FBGEMM keeps and reads a table."""
ROWS, DIM, LR, EPS = 50, 8, 0.1, 1e-8
TOLERANCE = 1e-5


def device_name(device: torch.device) -> str:
    """Returns name, memory and architecture of a device."""
    if device.type == "cpu":
        return f"CPU with {torch.get_num_threads()} threads"
    gpu = torch.cuda.get_device_properties(device)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}"


def lookup_and_update(device: torch.device) -> float:
    """Looks up a table, updates it by row-wise Adagrad, and compares both with their formulas.

    Returns:
        The largest difference.

    Raises:
        ValueError: it is above `TOLERANCE`.
    """
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, *PLACES[device.type])],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LR,
        eps=EPS,
        device=device,
    )
    weights = torch.arange(ROWS * DIM).remainder(7).view(ROWS, DIM) / 7
    (table,) = kernel.split_embedding_weights()
    table.copy_(weights)
    ids, offsets = torch.tensor([3, 3, 9, 49, 0]), torch.tensor([0, 2, 2, 5])
    vectors = kernel(ids.to(device), offsets.to(device))
    scale = torch.arange(1.0, 4.0)[:, None].expand(3, DIM)
    vectors.backward(scale.to(device).contiguous())
    bags = torch.nn.functional.embedding_bag(ids, weights, offsets[:-1], mode="sum")
    bag_of_id = torch.tensor([0, 0, 2, 2, 2])
    gradient = torch.zeros(ROWS, DIM).index_add(0, ids, scale[bag_of_id])
    state = gradient.square().mean(dim=1, keepdim=True)
    updated = weights - LR * gradient / (state.sqrt() + EPS)
    differences = [(vectors.detach().cpu() - bags).abs(), (table.cpu() - updated).abs()]
    largest = max(float(difference.max()) for difference in differences)
    if not largest <= TOLERANCE:
        raise ValueError(
            f"FBGEMM's lookup and update on {device} must equal their formulas within "
            f"{TOLERANCE:g}; they differ by {largest:g}."
        )
    return largest


def sum_over_one_rank(device: torch.device) -> str:
    """Sums a tensor of the device and one of the CPU over the group; returns the backends.

    Raises:
        ValueError: a sum is wrong.
    """
    for place in (device, torch.device("cpu")):
        one = torch.ones(3, device=place)
        dist.all_reduce(one)
        if one.tolist() != [dist.get_world_size()] * 3:
            raise ValueError(f"all_reduce on {place} must sum over the ranks; got {one.tolist()}.")
    return str(dist.get_backend_config())


def main() -> None:
    """Prints what was seen on the GPU of this process; an error ends it."""
    with process_group("cuda") as process:
        square = torch.eye(64, device=process.device)
        assert torch.equal(square @ square, square)
        lookup_and_update(process.device)
        sum_over_one_rank(process.device)
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        print(
            f"{torch.cuda.device_count()} CUDA device(s), {device_name(process.device)}: a "
            f"product, FBGEMM's lookup and update, and all_reduce by NCCL {nccl} work"
        )


if __name__ == "__main__":
    main()
