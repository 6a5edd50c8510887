"""LLM vectors of users and items as plain features, the baseline of the meta networks."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.knowledge_reducer import mean_and_scale
from msrec.model.layers.mlp import Hidden, check_positive
from msrec.model.layers.precision import softmax


class StandardizedKnowledge(nn.Module):
    """v = [(h - mean) / std, flag]; a missing vector is zeros with flag 1.

    Shape:
        knowledge: (U, knowledge_dim), float, raw LLM vectors.
        has: (U,), float, 0 where the store has no vector.
        returns: (U, knowledge_dim + 1), float.

    Raises:
        ValueError: mean or std is not valid, see `mean_and_scale`.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        mean, scale = mean_and_scale(mean, std)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.out_dim = len(mean) + 1

    def forward(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """Standardises vectors and appends the flag."""
        known = (knowledge.float() - self.get_buffer("mean")) * self.get_buffer("scale")
        return torch.cat([known * has.unsqueeze(1), 1 - has.unsqueeze(1)], dim=1)


class KnowledgeFeature(nn.Module):
    """Frozen LLM vectors of users (or items) as columns that are appended to x.

    With v of `StandardizedKnowledge`, `concat` returns v, or a linear map of it to `dim` columns;
    `experts` returns sum_e softmax(G v + g)_e expert_e(v).

    Shape:
        knowledge: (U, knowledge_dim), float, raw vectors of the batch's users.
        index: (B,), int64 in [0, U).
        has: (U,), float, 0 where the store has no vector.
        returns: (B, out_dim), float.

    Raises:
        ValueError: mean or std is not valid, the kind is unknown, or a size is below 1.

    Source:
        `experts` is the hybrid-expert adaptor of KAR (Xi et al., RecSys 2024, arXiv 2306.10933) for
        one kind of knowledge, the user's, where its shared and dedicated experts are the same.
        Vectors are standardised by the store's statistics (raw hidden states of different users
        have cosines near 1), which KAR does not do.

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
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ("concat", "experts"):
            raise ValueError(f"llm_feature.kind must be concat or experts; got {kind!r}.")
        check_positive(dim=1 if dim is None else dim)
        self.standard = StandardizedKnowledge(mean, std)
        width = self.standard.out_dim
        self.linear = nn.Linear(width, dim) if kind == "concat" and dim is not None else None
        self.experts: Experts | None = None
        self.out_dim = width if dim is None else dim
        if kind == "experts":
            self.experts = Experts(width, expert_dims, num_experts, Hidden(dropout=dropout))
            self.gate = nn.Linear(width, num_experts)
            self.out_dim = expert_dims[-1]

    def forward(self, knowledge: Tensor, index: Tensor, has: Tensor) -> Tensor:
        """Returns the columns of each row, by its user."""
        return self.columns(knowledge, has).index_select(0, index)

    def columns(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """Returns the columns of each user, (U, out_dim)."""
        v: Tensor = self.standard(knowledge, has)
        if self.experts is not None:
            return mix(softmax(self.gate(v), dim=1), self.experts(v))
        if self.linear is not None:
            v = self.linear(v)
        return v


class KnowledgeMatch(nn.Module):
    """Match of the user's text with the item's: the columns (A v_u) * (B v_i).

    Shape:
        user, item: vectors (U, H), index (B,) and has (U,) of each, as in `EntityVectors`.
        returns: (B, dim), float.

    Raises:
        ValueError: mean or std is not valid, or dim is below 1.

    Source:
        The two towers of content-based retrieval, with one number per dimension kept, which the
        backbone weighs. A and B start so small that the columns begin near 0.
    """

    def __init__(
        self, user: tuple[Tensor, Tensor], item: tuple[Tensor, Tensor], dim: int, dropout: float
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        self.of_user, self.of_item = StandardizedKnowledge(*user), StandardizedKnowledge(*item)
        self.user = nn.Linear(self.of_user.out_dim, dim)
        self.item = nn.Linear(self.of_item.out_dim, dim)
        self.dropout = Dropout(dropout)
        self.out_dim = dim

    def forward(self, user: Sequence[Tensor], item: Sequence[Tensor]) -> Tensor:
        """Returns the columns of each row; the arguments are (vectors, index, has)."""
        (user_vectors, user_index, has_user), (item_vectors, item_index, has_item) = user, item
        p: Tensor = self.dropout(self.user_factors(user_vectors, has_user))
        q: Tensor = self.dropout(self.item_factors(item_vectors, has_item))
        return p.index_select(0, user_index) * q.index_select(0, item_index)

    def user_factors(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """Returns A v_u of each user, (U, dim)."""
        factors: Tensor = self.user(self.of_user(knowledge, has))
        return factors

    def item_factors(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """Returns B v_i of each item, (I, dim)."""
        factors: Tensor = self.item(self.of_item(knowledge, has))
        return factors
