"""One separate MLP for each scenario, with nothing in common."""

from collections.abc import Sequence

from torch import Tensor, nn

from msrec.model.layers.mlp import Towers
from msrec.model.layers.row_groups import group_rows


class Separate(nn.Module):
    """A whole MLP per scenario, nothing shared: logit_s = MLP_s(x).

    The tables and the bottom MLP of the dense features stay shared, unless the run sets
    `embeddings.per_scenario: true` and `interaction.bottom_dims: []`: then S models are trained
    side by side, each on its own rows, and only stop together.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, num_scenarios).
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or a scenario is out of range.

    When:
        The reference that shows what sharing is worth. Right where scenarios have many rows each
        and little in common.

    Source:
        No paper; the reference that every multi-scenario paper calls "single" or "separate".

    Example:
        >>> import torch
        >>> model = Separate(in_dim=8, num_scenarios=3, dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        dims: Sequence[int] = (256, 128),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_scenarios = num_scenarios
        self.towers = Towers(in_dim, dims, num_scenarios, num_tasks, activation, dropout)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row in its own scenario."""
        groups = group_rows(scenario, self.num_scenarios)
        return groups.unsort(self.towers(groups.sort(x), groups))
