"""Interest blocks of several sources of item vectors, beside any backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.interest.block import InterestBlock, InterestOptions
from msrec.model.interest.histories import Histories, row_events
from msrec.model.layers.mlp import check_positive


class Interest(nn.Module):
    """Interest blocks, one per source of item vectors.

    The columns of the blocks are appended to the backbone's input, and a linear map of them is
    added to its logits.

    Shape:
        sources: per source (M + 1, dim), the vectors of the batch's distinct items.
        histories, scenario, weight: as in `InterestBlock`.
        returns: columns (B, out_dim) and logits (B, num_tasks).

    Args:
        dims: size of the vectors of each source.
        scenarios: of `InterestBlock`.

    Raises:
        ValueError: a size is below 1, or there is no source.
    """

    def __init__(
        self,
        dims: Sequence[int],
        max_len: int,
        num_scenarios: int,
        num_tasks: int = 1,
        options: InterestOptions | None = None,
        scenarios: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_positive(sources=len(dims), num_tasks=num_tasks)
        options = options or InterestOptions()
        self.cross_scenario = options.cross_scenario
        blocks = [InterestBlock(dim, max_len, num_scenarios, options, scenarios) for dim in dims]
        self.blocks = nn.ModuleList(blocks)
        self.out_dim = sum(block.out_dim for block in blocks)
        self.head = nn.Linear(self.out_dim, num_tasks, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        sources: Sequence[Tensor],
        histories: Histories,
        scenario: Tensor,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the columns and the logits of each row."""
        row = row_events(histories, scenario, self.cross_scenario)
        columns = torch.cat(
            [
                block(items, histories, row, weight)
                for block, items in zip(self.blocks, sources, strict=True)
            ],
            dim=1,
        )
        return columns, self.head(columns)
