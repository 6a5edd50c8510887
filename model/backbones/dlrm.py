"""DLRM: dot products of all pairs of vectors, then an MLP; it knows no scenario."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.feature_layout import FeatureLayout
from msrec.model.layers.interaction import PairDots
from msrec.model.layers.mlp import MLP, check_positive


class DLRM(nn.Module):
    """Deep learning recommendation model: logit = top([bottom, dots of all pairs of vectors]).

    The vectors are the looked-up ones and, where there are dense features, bottom(dense), which
    stands at the beginning of x. Columns of x behind the vectors go to the top MLP as they are.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64; not used.
        weight: (B,), float; not used.
        returns: logits (B, num_tasks), float.

    Raises:
        ValueError: a size is below 1, or bottom(dense) is there and not as large as a vector.

    When:
        Many ids whose pairs matter beside dense features; the wiring to compare with torchrec's own
        DLRM.

    Source:
        Naumov et al., arXiv 1906.00091. Pairs below the diagonal, no self product, as TorchRec's.

    Example:
        >>> fields = FeatureLayout(("user_id", "item_id"), dim=4, start=4)
        >>> model = DLRM(in_dim=12, num_scenarios=3, fields=fields, dims=[4])
        >>> model(torch.zeros(5, 12), torch.zeros(5)).shape
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
        if fields.start not in (0, fields.dim):
            raise ValueError(
                f"interaction.bottom_dims must end with the embedding size {fields.dim}, so that "
                f"the dense features are one more vector; got {fields.start}."
            )
        self.fields = fields
        self.dots = PairDots(len(fields.names) + (fields.start > 0))
        rest = in_dim - fields.end
        self.mlp = MLP(fields.start + self.dots.out_dim + rest, dims, activation, dropout)
        self.head = nn.Linear(self.mlp.out_dim, num_tasks)

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits of each row."""
        bottom, vectors = x[:, : self.fields.start], self.fields.vectors(x)
        if self.fields.start:
            vectors = torch.cat([bottom.unsqueeze(1), vectors], dim=1)
        parts = [bottom, self.dots(vectors), x[:, self.fields.end :]]
        logits: Tensor = self.head(self.mlp(torch.cat(parts, dim=1)))
        return logits
