"""DeepFM: a factorisation machine beside an MLP; it knows no scenario."""

from collections.abc import Sequence

from torch import Tensor, nn

from msrec.model.layers.feature_layout import FeatureLayout
from msrec.model.layers.mlp import MLP, check_positive


class DeepFM(nn.Module):
    """Factorisation machine and MLP: logit = w x + sum of dots of all pairs of vectors + MLP(x).

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64; not used.
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or x has no looked-up vectors.

    When:
        The taste of a user for an item carries most of the signal, as with ratings: the pairs say
        it directly.

    Source:
        Guo et al., IJCAI 2017 (arXiv 1703.04247). The first-order weight of an id is a linear map
        of its vector (and of dense columns), where the paper has a table of single numbers; pairs
        by (sum^2 - sum of squares) / 2.

    Example:
        >>> import torch
        >>> fields = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> model = DeepFM(in_dim=8, num_scenarios=3, fields=fields, dims=[4])
        >>> model(torch.zeros(5, 8), torch.zeros(5)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_dim: int,
        num_scenarios: int,
        num_tasks: int = 1,
        *,
        fields: FeatureLayout,
        dims: Sequence[int] = (256, 128),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_scenarios=num_scenarios, num_tasks=num_tasks, vectors=len(fields.names))
        self.fields = fields
        self.first_order = nn.Linear(in_dim, num_tasks)
        self.mlp = MLP(in_dim, dims, activation, dropout)
        self.head = nn.Linear(self.mlp.out_dim, num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row."""
        vectors = self.fields.vectors(x)
        pairs = vectors.sum(1).square() - vectors.square().sum(1)
        logits: Tensor = self.first_order(x) + self.head(self.mlp(x))
        return logits + pairs.sum(1, keepdim=True) / 2
