"""Interest block: frozen item vectors, matched with the user's ordered history across scenarios."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msrec.model.layers.mlp import check_positive
from msrec.model.layers.partitioned_norm import PartitionedNorm
from msrec.model.layers.row_groups import RowGroups

INITIAL_SHARPNESS = 2.0
"""Initial tau: similarities of unit vectors are multiplied by e^tau."""
INITIAL_DECAY = -1.5
"""Initial log of the rate at which older events lose weight; at e^-1.5 it halves in 3 events."""


@dataclass(frozen=True)
class InterestOptions:
    """Options of every `InterestBlock` of a model.

    Args:
        rank: size of the generated layer.
        projection: whether a learned projection P is applied to the frozen vectors.
        generated: whether the generated layer is there.
        cross_scenario: whether items of other scenarios are read.

    Raises:
        ValueError: the rank is below 1.
    """

    rank: int = 16
    projection: bool = True
    generated: bool = True
    cross_scenario: bool = True

    def __post_init__(self) -> None:
        check_positive(rank=self.rank)


class Histories(NamedTuple):
    """Histories of a batch, padded; U distinct ones, and the one of each of the B rows.

    Shape:
        mask: (U, K), bool, whether a place has an event; newest last, so empty places come first.
        scenario: (U, K), int64, scenario of each event.
        label: (U, K), float, label of each event.
        bag: (B,), int64 in [0, U); `arange(B)` if U equals B.
    """

    mask: Tensor
    scenario: Tensor
    label: Tensor
    bag: Tensor


class Attention(NamedTuple):
    """Attention of each row over the events of its history.

    Shape:
        similarity: (B, K), products of the candidate with each event; 0 in empty places.
        weights: (B, K), at least 0, sum at most 1: the rest is the weight of the null slot.
    """

    similarity: Tensor
    weights: Tensor


class InterestBlock(nn.Module):
    """Match of a candidate item with the user's history, in the space of one source of vectors.

    With the frozen unit vectors v of candidate and events, the projection P (starts as the
    identity), q = v P and k_h = v_h P::

        S_h = q . k_h
        a   = softmax over events h and a null slot (logit 0) of
              e^tau S_h + rho[position of h] - xi[scenario of the row] * (h is of another scenario)
        r   = sum_h a_h s_h k_h                     s: a learned value per label, starts at -1 and 1
        z   = [mean_h s_h k_h, mean_h s_h k_h with weights that decay with age]
        g   = (A z) * (V q)                         a layer that z generates reads the item

    The columns are: largest and mean S and log(1 + count) of the events by label and by whether
    they are of the row's scenario, mean of S with decaying weights, S of the newest event,
    logsumexp of the attention logits, r . q, the sum of a, whether the candidate has a vector, and
    g. They are normalised by batch statistics over all ranks.

    Shape:
        candidate: (B, dim), float, unit vectors; zeros for an item without a vector.
        history: (U, K, dim), float; zeros in empty places.
        histories: masks, scenarios and labels of the same events.
        scenario: (B,), int64.
        weight: (B,), float, 0 for padding rows; None means all 1.
        returns: (B, out_dim), float.

    Raises:
        ValueError: a size is below 1.

    Source:
        Target attention is that of DIN (Zhou et al., KDD 2018) with a null slot. The generated
        layer is the meta layer of LLM4MSR on the item's side: the user's knowledge makes the
        weights diag(A z) V that read the item.
    """

    def __init__(
        self,
        dim: int,
        max_len: int,
        num_scenarios: int,
        options: InterestOptions | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, max_len=max_len, num_scenarios=num_scenarios)
        options = options or InterestOptions()
        self.options, self.max_len = options, max_len
        self.projection = nn.Parameter(torch.eye(dim)) if options.projection else None
        self.sharpness = nn.Parameter(torch.tensor(INITIAL_SHARPNESS))
        self.position = nn.Parameter(torch.zeros(max_len))
        self.other_scenario = nn.Parameter(torch.zeros(num_scenarios))
        self.label_value = nn.Parameter(torch.tensor([-1.0, 1.0]))
        self.decay = nn.Parameter(torch.tensor(INITIAL_DECAY))
        self.user_factors = nn.Linear(2 * dim, options.rank) if options.generated else None
        self.item_factors = nn.Linear(dim, options.rank) if options.generated else None
        self.out_dim = 18 + (options.rank if options.generated else 0)
        self.norm = PartitionedNorm(self.out_dim, 1)

    def forward(
        self,
        candidate: Tensor,
        history: Tensor,
        histories: Histories,
        scenario: Tensor,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Returns the columns of each row."""
        columns = self.columns(candidate, history, histories, scenario)
        rows = RowGroups(torch.zeros_like(scenario), None, None, [])
        normalised: Tensor = self.norm(columns, rows, weight)
        return normalised

    def attention(
        self, candidate: Tensor, history: Tensor, histories: Histories, scenario: Tensor
    ) -> Attention:
        """Returns similarities and weights of each row's events, for explanations."""
        row = _of_rows(histories, scenario, self.options.cross_scenario)
        similarity = self._similarity(candidate, history, histories)
        logits = self._logits(similarity, row, scenario)
        return Attention(similarity * row.mask, _with_null_slot(logits)[0])

    def columns(
        self, candidate: Tensor, history: Tensor, histories: Histories, scenario: Tensor
    ) -> Tensor:
        """Returns the columns of each row before their normalisation."""
        row = _of_rows(histories, scenario, self.options.cross_scenario)
        similarity = self._similarity(candidate, history, histories)
        attention, log_sum = _with_null_slot(self._logits(similarity, row, scenario))
        value = torch.where(row.label > 0, self.label_value[1], self.label_value[0])
        decay = self._decay_weights(row.mask)
        # r . q is a sum over the similarities, so that no vector of an event is read again.
        match = (attention * value * similarity).sum(1)
        recent = (decay * value * similarity).sum(1)
        columns = [
            *_by_group(similarity, row),
            recent,
            (similarity * row.mask)[:, -1],
            log_sum,
            match,
            attention.sum(1),
            candidate.square().sum(1).clamp(max=1),
        ]
        stacked = torch.stack(columns, dim=1)
        if self.user_factors is None or self.item_factors is None:
            return stacked
        g = self._user_code(history, histories, row, value, decay) * self._item_code(candidate)
        return torch.cat([stacked, g], dim=1)

    def _similarity(self, candidate: Tensor, history: Tensor, histories: Histories) -> Tensor:
        """Returns q . k_h = (v P P^T) . v_h, (B, K): only the candidate is projected."""
        if self.projection is not None:
            candidate = (candidate @ self.projection) @ self.projection.T
        events = _rows_of(history, histories.bag)
        return torch.bmm(events, candidate.unsqueeze(2)).squeeze(2)

    def _logits(self, similarity: Tensor, row: "_RowEvents", scenario: Tensor) -> Tensor:
        places = similarity.shape[1]
        logits = self.sharpness.exp() * similarity + self.position[self.max_len - places :]
        other = self.other_scenario[scenario].unsqueeze(1) * ~row.is_same
        return (logits - other).masked_fill(~row.mask, -torch.inf)

    def _decay_weights(self, mask: Tensor) -> Tensor:
        """Returns weights that decay by e^-e^decay per place and sum to 1, or to 0 if empty."""
        age = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)
        weights = torch.exp(-self.decay.exp() * age) * mask
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)

    def _item_code(self, candidate: Tensor) -> Tensor:
        assert self.item_factors is not None
        if self.projection is not None:
            candidate = candidate @ self.projection
        code: Tensor = self.item_factors(candidate)
        return code

    def _user_code(
        self,
        history: Tensor,
        histories: Histories,
        row: "_RowEvents",
        value: Tensor,
        decay: Tensor,
    ) -> Tensor:
        """Returns A z of each row."""
        assert self.user_factors is not None
        mean = row.mask / row.mask.sum(1, keepdim=True).clamp(min=1)
        both = torch.stack([mean, decay], dim=1) * value.unsqueeze(1)
        z = torch.bmm(both, _rows_of(history, histories.bag))
        if self.projection is not None:
            z = z @ self.projection
        code: Tensor = self.user_factors(z.flatten(1))
        return code


class _RowEvents(NamedTuple):
    """The events of each row, (B, K): whether there is one, of the row's scenario, its label."""

    mask: Tensor
    is_same: Tensor
    label: Tensor


def _of_rows(histories: Histories, scenario: Tensor, cross_scenario: bool) -> _RowEvents:
    mask = _rows_of(histories.mask, histories.bag)
    is_same = _rows_of(histories.scenario, histories.bag) == scenario.unsqueeze(1)
    if not cross_scenario:
        mask = mask & is_same
    return _RowEvents(mask, is_same, _rows_of(histories.label, histories.bag))


def _rows_of(values: Tensor, bag: Tensor) -> Tensor:
    """Returns the value of each row's history; no copy if every row has its own."""
    return values if len(values) == len(bag) else values.index_select(0, bag)


def _with_null_slot(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns softmax weights without the null slot, and the logsumexp with it."""
    log_sum = torch.logsumexp(torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1), dim=1)
    return torch.exp(logits - log_sum.unsqueeze(1)), log_sum


def _by_group(similarity: Tensor, row: _RowEvents) -> list[Tensor]:
    """Returns largest and mean similarity and log count, by scenario (same, other) and label."""
    columns = []
    is_positive = row.label > 0
    for of_scenario in (row.is_same, ~row.is_same):
        for of_label in (is_positive, ~is_positive):
            mask = row.mask & of_scenario & of_label
            count = mask.sum(1)
            largest = similarity.masked_fill(~mask, -torch.inf).amax(1)
            columns += [
                torch.where(count > 0, largest, torch.zeros_like(largest)),
                (similarity * mask).sum(1) / count.clamp(min=1),
                torch.log1p(count.to(similarity.dtype)),
            ]
    return columns


class Interest(nn.Module):
    """Interest blocks of several sources of item vectors, beside any backbone.

    The columns of the blocks are appended to the backbone's input, and a linear map of them is
    added to its logits.

    Shape:
        sources: per source candidate vectors (B, dim) and history vectors (U, K, dim).
        histories, scenario, weight: as in `InterestBlock`.
        returns: columns (B, out_dim) and logits (B, num_tasks).

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
    ) -> None:
        super().__init__()
        check_positive(sources=len(dims), num_tasks=num_tasks)
        self.blocks = nn.ModuleList(
            InterestBlock(dim, max_len, num_scenarios, options) for dim in dims
        )
        self.out_dim = sum(int(block.out_dim) for block in self.blocks)
        self.head = nn.Linear(self.out_dim, num_tasks, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        sources: Sequence[tuple[Tensor, Tensor]],
        histories: Histories,
        scenario: Tensor,
        weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the columns and the logits of each row."""
        columns = torch.cat(
            [
                block(candidate, history, histories, scenario, weight)
                for block, (candidate, history) in zip(self.blocks, sources, strict=True)
            ],
            dim=1,
        )
        return columns, self.head(columns)
