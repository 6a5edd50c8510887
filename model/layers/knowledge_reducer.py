"""Short codes of frozen LLM vectors, from which layers are generated."""

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.precision import float32_products


class KnowledgeReducer(nn.Module):
    """Frozen LLM vectors to short codes: z = [1, dropout(tanh(A (h - mean) / std + a))].

    With `flag`, a missing vector counts as the mean (standardised: zeros) plus a learned vector
    inside tanh. A dimension with std 0 carries no information and is left out.

    Shape:
        knowledge: (U, knowledge_dim), float.
        has_knowledge: (U,), float, 0 or 1; needed only with `flag`.
        returns: (U, rank + 1), float; column 0 is 1.

    Raises:
        ValueError: mean or std has another shape, is not finite or is negative; knowledge has
            another width than the model was built with.

    Source:
        LLM4MSR leaves the reduction open. Hidden states have a few dimensions hundreds of times
        larger than the rest, so they are standardised first, with fixed statistics of the store (a
        row must not depend on its batch). tanh and not LayerNorm: it also bounds the effect of an
        unusual user on the weights, and keeps z = 0 possible, "nothing known".
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        rank: int,
        dropout: float = 0.0,
        standardize: bool = True,
        flag: bool = False,
    ) -> None:
        super().__init__()
        mean, scale = mean_and_scale(mean, std)
        if not standardize:
            mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.linear = nn.Linear(len(mean), rank)
        self.flag = nn.Parameter(torch.zeros(rank)) if flag else None
        self.dropout = Dropout(dropout)

    def forward(self, knowledge: Tensor, has_knowledge: Tensor | None = None) -> Tensor:
        """Returns the code of each vector."""
        dim = self.linear.in_features
        if knowledge.dim() != 2 or knowledge.shape[1] != dim:
            raise ValueError(
                f"knowledge must be (U, {dim}) as when the model was built; got "
                f"{tuple(knowledge.shape)}. Give the store that the run was trained with."
            )
        # Standardising the weights costs R * H, standardising the vectors U * H.
        weight = self.linear.weight * self.get_buffer("scale")
        with float32_products(weight):  # vectors are large next to their differences
            offset = -(weight @ self.get_buffer("mean"))
            z = torch.addmm(offset, knowledge.to(weight.dtype), weight.T)
        if self.flag is not None:
            assert has_knowledge is not None
            has = has_knowledge.unsqueeze(1)
            z = z * has + (1 - has) * self.flag
        z = self.dropout(torch.tanh(z + self.linear.bias))
        return torch.cat([torch.ones_like(z[:, :1]), z], dim=1)


def mean_and_scale(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and 1 / std, float32, that standardise vectors; the scale of std 0 is 0.

    Raises:
        ValueError: another shape than (knowledge_dim,), a value that is not finite, or std below 0.
    """
    if mean.dim() != 1 or mean.shape != std.shape:
        raise ValueError(
            "mean and std of the knowledge must both be (knowledge_dim,); got "
            f"{tuple(mean.shape)} and {tuple(std.shape)}."
        )
    invalid = ~(mean.isfinite() & std.isfinite() & (std >= 0))
    if invalid.any():
        column = int(invalid.nonzero()[0])
        raise ValueError(
            "mean and std of the knowledge must be finite, std at least 0; got mean "
            f"{float(mean[column])}, std {float(std[column])} in dimension {column}. Encode again."
        )
    std = std.float()
    return mean.float(), torch.where(std > 0, 1 / std, torch.zeros_like(std))
