"""A plain MLP that knows no scenario: the reference every other model must beat."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from msrec.model.layers import mlp
from msrec.model.layers.mlp import check_positive


class MLP(nn.Module):
    """One MLP for all scenarios, which it does not know: logit = head(MLP(x)).

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64; not used.
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1.

    When:
        As the floor: a multi-scenario model that does not beat it is not worth its price. Enough
        where a feature of x already tells the scenario.

    Source:
        No paper; the deep part of Cheng et al., DLRS 2016 (Wide & Deep), alone.

    Example:
        >>> import torch
        >>> MLP(in_dim=8, num_scenarios=3, dims=[4])(torch.zeros(5, 8), torch.zeros(5)).shape
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
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__()
        check_positive(num_scenarios=num_scenarios, num_tasks=num_tasks)
        self.mlp = mlp.MLP(in_dim, dims, activation, dropout, norm)
        self.head = nn.Linear(self.mlp.out_dim, num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row."""
        logits: Tensor = self.head(self.mlp(x))
        return logits
