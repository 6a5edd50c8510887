"""LLM vectors of users and items as features beside x: the baseline that generates no weights."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.experts import Experts, mix
from msrec.model.layers.mlp import check_positive
from msrec.model.meta import standardisation


class KnowledgeFeature(nn.Module):
    """Frozen LLM vectors of users (or items) -> columns to put beside x.

    v = [(h - mean) / std, flag]; one without a vector has zeros and flag 1. `concat` gives v
    itself, or with `dim` a linear map of it; `experts` gives sum_e softmax(G v + g)_e expert_e(v).

    Shape:
        knowledge: (U, knowledge_dim), float, raw vectors of the batch's users.
        index: (B,), int64 in [0, U).
        has: (U,), float, 0 where the store has no vector.
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
        self.standard = Standard(mean, std)
        width = self.standard.out_dim
        self.linear = nn.Linear(width, dim) if kind == "concat" and dim is not None else None
        self.experts: Experts | None = None
        self.out_dim = width if dim is None else dim
        if kind == "experts":
            self.experts = Experts(width, expert_dims, num_experts, activation, dropout)
            self.gate = nn.Linear(width, num_experts)
            self.out_dim = expert_dims[-1]

    def forward(self, knowledge: Tensor, index: Tensor, has: Tensor) -> Tensor:
        """Columns of each row, by its user."""
        return self.columns(knowledge, has).index_select(0, index)

    def columns(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """Columns of each user."""
        v: Tensor = self.standard(knowledge, has)
        if self.experts is not None:
            return mix(self.gate(v).softmax(dim=1), self.experts(v))
        return v if self.linear is None else torch.as_tensor(self.linear(v))


class KnowledgeMatch(nn.Module):
    """What the text of a user says about the text of an item: the columns (A v_u) * (B v_i).

    Shape:
        user, item: (U, H) and (I, H') vectors, (B,) index and (U,) has of each, as in
            `EntityVectors`.
        returns: (B, dim), float.

    Raises:
        ValueError: mean or std does not fit, or dim is below 1.

    Source:
        The two towers of content-based retrieval, one number per dimension kept for the backbone
        to weigh. A and B start so small that the columns begin near 0.
    """

    def __init__(
        self, user: tuple[Tensor, Tensor], item: tuple[Tensor, Tensor], dim: int, dropout: float
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        self.of_user, self.of_item = Standard(*user), Standard(*item)
        self.user = nn.Linear(self.of_user.out_dim, dim)
        self.item = nn.Linear(self.of_item.out_dim, dim)
        self.dropout = Dropout(dropout)
        self.out_dim = dim

    def forward(self, user: Sequence[Tensor], item: Sequence[Tensor]) -> Tensor:
        """Columns of each row; each argument is (vectors, index, has)."""
        (h_user, at_user, has_user), (h_item, at_item, has_item) = user, item
        p: Tensor = self.dropout(self.user_side(h_user, has_user))
        q: Tensor = self.dropout(self.item_side(h_item, has_item))
        return p.index_select(0, at_user) * q.index_select(0, at_item)

    def user_side(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """A v_u of each user."""
        return torch.as_tensor(self.user(self.of_user(knowledge, has)))

    def item_side(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """B v_i of each item."""
        return torch.as_tensor(self.item(self.of_item(knowledge, has)))


class Standard(nn.Module):
    """v = [(h - mean) / std, flag]: (U, H) -> (U, H + 1); zeros and flag 1 where there is none."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        mean, scale = standardisation(mean, std)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.out_dim = len(mean) + 1

    def forward(self, knowledge: Tensor, has: Tensor) -> Tensor:
        """Standardise."""
        known = (knowledge.float() - self.get_buffer("mean")) * self.get_buffer("scale")
        return torch.cat([known * has.unsqueeze(1), 1 - has.unsqueeze(1)], dim=1)
