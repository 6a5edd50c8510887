"""The user's LLM vector as a feature beside x: the baseline that generates no weights."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.experts import Experts, mix
from msrec.model.meta import standardisation
from msrec.model.mlp import check_positive


class KnowledgeFeature(nn.Module):
    """Frozen LLM vectors of users -> columns to put beside x.

    v = [(h - mean) / std, flag]; a user without a vector has zeros and flag 1. `concat` gives v
    itself, or with `dim` a linear map of it; `experts` gives sum_e softmax(G v + g)_e expert_e(v).

    Shape:
        knowledge: (U, knowledge_dim), float, raw vectors of the batch's users.
        user_index: (B,), int64 in [0, U).
        has_knowledge: (U,), float, 0 where the store has no vector.
        returns: (B, out_dim), float.

    Raises:
        ValueError: mean or std does not fit, the kind is unknown, or a size is below 1.

    Source:
        `experts` is the hybrid-expert adaptor of KAR (Xi et al., RecSys 2024, arXiv 2306.10933) for
        one kind of knowledge, the user's, where its shared and dedicated experts are the same
        thing. Vectors are standardised by the store's statistics (raw hidden states of different
        users have cosines near 1), which KAR does not do.

    Example:
        >>> feature = KnowledgeFeature(mean=torch.zeros(6), std=torch.ones(6), kind="concat", dim=4)
        >>> feature(torch.rand(2, 6), torch.tensor([0, 1, 1]), torch.ones(2)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        kind: Literal["concat", "experts"],
        dim: int | None = None,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128, 32),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ("concat", "experts"):
            raise ValueError(f"llm_feature.kind must be concat or experts; got {kind!r}.")
        check_positive(dim=1 if dim is None else dim)
        mean, scale = standardisation(mean, std)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        width = len(mean) + 1
        self.linear = nn.Linear(width, dim) if kind == "concat" and dim is not None else None
        self.experts: Experts | None = None
        self.out_dim = width if dim is None else dim
        if kind == "experts":
            self.experts = Experts(width, expert_dims, num_experts, activation, dropout)
            self.gate = nn.Linear(width, num_experts)
            self.out_dim = expert_dims[-1]

    def forward(self, knowledge: Tensor, user_index: Tensor, has_knowledge: Tensor) -> Tensor:
        """Columns of each row, by its user."""
        has = has_knowledge.unsqueeze(1)
        known = (knowledge - self.get_buffer("mean")) * self.get_buffer("scale") * has
        v = torch.cat([known, 1 - has], dim=1)
        if self.experts is not None:
            v = mix(self.gate(v).softmax(dim=1), self.experts(v))
        elif self.linear is not None:
            v = self.linear(v)
        return v.index_select(0, user_index)
