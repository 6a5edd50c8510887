"""Interest block: frozen item vectors, matched with the user's ordered history across scenarios."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.data.loading.batch import HistoryEvents
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
    """Candidates and histories of a batch, as positions in a table of M distinct items.

    Shape:
        candidate: (B,), int64 in [0, M]; M is an item without a vector.
        events: (U, K), int64 in [0, M]; M is an empty place. Newest last, empty places first.
        scenario: (U, K), int64, scenario of each event; -1 in an empty place.
        label: (U, K), float, label of each event.
        bag: (B,), int64 in [0, U), the history of each row; `arange(B)` if U is B.
    """

    candidate: Tensor
    events: Tensor
    scenario: Tensor
    label: Tensor
    bag: Tensor

    @classmethod
    def of_batch(cls, events: HistoryEvents) -> Self:
        """Returns the histories of `Batch.sequence`."""
        return cls(events.candidate, events.events, events.scenario, events.label, events.bag)


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
        z   = [mean_h s_h k_h, mean_h s_h k_h with weights that decay with age], no gradient of s
        g   = (A z) * (V q)                         a layer that z generates reads the item

    The columns are: largest and mean S and log(1 + count) of the events by label and by whether
    they are of the row's scenario, mean of S with decaying weights, S of the newest event,
    logsumexp of the attention logits, r . q, the sum of a, whether the candidate has a vector, and
    g. They are normalised by batch statistics over all ranks.

    Shape:
        items: (M + 1, dim), float, unit vectors; zeros for an item without a vector, and last.
        histories: candidates and events, as positions in `items`.
        row: the events of each row, by `row_events`.
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
        self, items: Tensor, histories: Histories, row: "RowEvents", weight: Tensor | None = None
    ) -> Tensor:
        """Returns the columns of each row."""
        columns = self.columns(items, histories, row)
        rows = RowGroups(torch.zeros_like(row.scenario), None, None, [])
        normalised: Tensor = self.norm(columns, rows, weight)
        return normalised

    def attention(self, items: Tensor, histories: Histories, row: "RowEvents") -> Attention:
        """Returns similarities and weights of each row's events, for explanations."""
        candidate = items.index_select(0, histories.candidate)
        similarity = self._similarity(items, candidate, row)
        weights, _ = _with_null_slot(self._logits(similarity, row))
        return Attention(similarity * row.mask, weights)

    def columns(self, items: Tensor, histories: Histories, row: "RowEvents") -> Tensor:
        """Returns the columns of each row before their normalisation."""
        candidate = items.index_select(0, histories.candidate)
        similarity = self._similarity(items, candidate, row)
        attention, log_sum = _with_null_slot(self._logits(similarity, row))
        value = self._value(row.label) * row.mask
        # r . q is a sum over the similarities, so that no vector of an event is read again.
        signed = value * similarity
        single = [
            (self._decay_weights(row.mask) * signed).sum(1),
            (similarity * row.mask)[:, -1],
            log_sum,
            (attention * signed).sum(1),
            attention.sum(1),
            candidate.square().sum(1).clamp(max=1),
        ]
        columns = [*_by_group(similarity, row), torch.stack(single, dim=1)]
        if self.item_factors is not None:
            columns.append(self._user_code(items, histories, row) * self._item_code(candidate))
        return torch.cat(columns, dim=1)

    def _similarity(self, items: Tensor, candidate: Tensor, row: "RowEvents") -> Tensor:
        """Returns q . k_h = (v P P^T) . v_h, (B, K): no event is projected."""
        if self.projection is not None:
            candidate = candidate @ (self.projection @ self.projection.T)
        return gather_dot(candidate, items, row.events)

    def _logits(self, similarity: Tensor, row: "RowEvents") -> Tensor:
        places = similarity.shape[1]
        logits = self.sharpness.exp() * similarity + self.position[self.max_len - places :]
        other = self.other_scenario[row.scenario].unsqueeze(1) * ~row.is_same
        return (logits - other).masked_fill(~row.mask, -torch.inf)

    def _value(self, label: Tensor) -> Tensor:
        return torch.where(label > 0, self.label_value[1], self.label_value[0])

    def _decay_weights(self, mask: Tensor) -> Tensor:
        """Returns weights that decay by e^-e^decay per place and sum to 1, or to 0 if empty."""
        age = torch.arange(mask.shape[1] - 1, -1, -1, device=mask.device)
        weights = torch.exp(-self.decay.exp() * age) * mask
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)

    def _item_code(self, candidate: Tensor) -> Tensor:
        """Returns V q = (V P^T) v of each row."""
        assert self.item_factors is not None
        return functional.linear(
            candidate, self._projected(self.item_factors.weight), self.item_factors.bias
        )

    def _user_code(self, items: Tensor, histories: Histories, row: "RowEvents") -> Tensor:
        """Returns A z of each row."""
        assert self.user_factors is not None
        # Once per history, unless a row's scenario decides which of its events count.
        events, mask, label = histories.events, histories.scenario >= 0, histories.label
        if not self.options.cross_scenario:
            events, mask, label = row.events, row.mask, row.label
        # The values and the decay learn from the other columns. Without a gradient here, the
        # vectors of the events are read once and not again in the backward pass.
        value, decay = self._value(label).detach(), self._decay_weights(mask).detach()
        mean = value * mask / mask.sum(1, keepdim=True).clamp(min=1)
        weight = torch.unflatten(self.user_factors.weight, 1, (2, -1))
        code: Tensor = self.user_factors.bias
        for of_events, factors in zip((mean, value * decay), weight.unbind(1), strict=True):
            z = weighted_sum(items, events, of_events)
            code = code + functional.linear(z, self._projected(factors))
        return _rows_of(code, histories.bag) if self.options.cross_scenario else code

    def _projected(self, factors: Tensor) -> Tensor:
        """Returns factors that read frozen vectors v in place of projected ones v P."""
        return factors if self.projection is None else factors @ self.projection.T


class _GatherDot(torch.autograd.Function):
    """Dot products of rows with gathered rows of a frozen table, without making the gathered ones.

    torch has no operation of this name, but it is the gradient of `embedding_bag` with respect to
    its weights per sample, and the other way round.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(table, index)
        flat = index.reshape(-1)
        places = index.shape[1]
        bags = torch.arange(len(index), device=index.device)
        products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            rows.contiguous(), table, flat, bags * places, bags.repeat_interleave(places), 0
        )
        return products.view(index.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        table, index = ctx.saved_tensors
        return weighted_sum(table, index, grad.contiguous()), None, None


def gather_dot(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Returns the dot products of each row with K rows of a table that gets no gradient.

    Shape:
        rows: (B, D), float.
        table: (M, D), float.
        index: (B, K), int64 in [0, M).
        returns: (B, K).
    """
    if torch.compiler.is_exporting():
        return torch.bmm(table[index], rows.unsqueeze(2)).squeeze(2)
    products: Tensor = _GatherDot.apply(rows, table, index)  # type: ignore[no-untyped-call]
    return products


def weighted_sum(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Returns the sum over K of weight[b, k] * table[index[b, k]]: (B, D)."""
    if torch.compiler.is_exporting():
        return torch.bmm(weight.unsqueeze(1), table[index]).squeeze(1)
    return functional.embedding_bag(index, table, per_sample_weights=weight, mode="sum")


class RowEvents(NamedTuple):
    """Events of each row; what all sources share.

    Shape:
        scenario: (B,), int64, of the row.
        events: (B, K), int64, positions of the items.
        mask: (B, K), bool, whether the place has an event that counts.
        is_same: (B, K), bool, whether the event is of the row's scenario.
        label: (B, K), float.
        groups: (B, 4, K), bool, events of the same scenario with label 1, with label 0, and of the
            others with label 1, with label 0.
        counts: (B, 4), int64, events in each group.
    """

    scenario: Tensor
    events: Tensor
    mask: Tensor
    is_same: Tensor
    label: Tensor
    groups: Tensor
    counts: Tensor


def row_events(histories: Histories, scenario: Tensor, cross_scenario: bool) -> RowEvents:
    """Returns the events of each row; without `cross_scenario`, those of its scenario alone."""
    of_event = _rows_of(histories.scenario, histories.bag)
    mask, is_same = of_event >= 0, of_event == scenario.unsqueeze(1)
    if not cross_scenario:
        mask = mask & is_same
    events, label = (_rows_of(v, histories.bag) for v in (histories.events, histories.label))
    kind = torch.where(is_same, 0, 2) + (label <= 0)
    numbers = torch.arange(4, device=kind.device).view(1, 4, 1)
    groups = kind.masked_fill(~mask, -1).unsqueeze(1) == numbers
    return RowEvents(scenario, events, mask, is_same, label, groups, groups.sum(2))


def _rows_of(values: Tensor, bag: Tensor) -> Tensor:
    """Returns the value of each row's history; no copy if every row has its own."""
    # An exported program takes any numbers of rows and histories, so that it always copies.
    is_own = not torch.compiler.is_exporting() and len(values) == len(bag)
    return values if is_own else values.index_select(0, bag)


def _with_null_slot(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns softmax weights without the null slot, and the logsumexp with it."""
    log_sum = torch.logsumexp(torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1), dim=1)
    return torch.exp(logits - log_sum.unsqueeze(1)), log_sum


def _by_group(similarity: Tensor, row: RowEvents) -> list[Tensor]:
    """Returns largest and mean similarity and log count of each group of events, (B, 4) each."""
    each = similarity.unsqueeze(1)
    largest = torch.where(row.groups, each, -torch.inf).amax(2)
    total = torch.bmm(row.groups.to(similarity.dtype), similarity.unsqueeze(2)).squeeze(2)
    return [
        torch.where(row.counts > 0, largest, 0.0),
        total / row.counts.clamp(min=1),
        torch.log1p(row.counts.to(similarity.dtype)),
    ]


class Interest(nn.Module):
    """Interest blocks of several sources of item vectors, beside any backbone.

    The columns of the blocks are appended to the backbone's input, and a linear map of them is
    added to its logits.

    Shape:
        sources: per source (M + 1, dim), the vectors of the batch's distinct items.
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
        options = options or InterestOptions()
        self.cross_scenario = options.cross_scenario
        blocks = [InterestBlock(dim, max_len, num_scenarios, options) for dim in dims]
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
