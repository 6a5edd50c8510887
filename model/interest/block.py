"""Interest block: frozen item vectors of one source, matched with the user's ordered history."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msrec.model.interest.gather import gather_dot, weighted_sum
from msrec.model.interest.histories import NUM_GROUPS, Histories, RowEvents
from msrec.model.layers.knowledge_reducer import KnowledgeReducer
from msrec.model.layers.mlp import check_positive
from msrec.model.layers.partitioned_norm import PartitionedNorm
from msrec.model.layers.row_groups import RowGroups

INITIAL_SHARPNESS = 2.0
"""Initial tau: similarities of unit vectors are multiplied by e^tau."""
INITIAL_DECAY = -1.5
"""Initial log of the rate at which older events lose weight; at e^-1.5 it halves in 3 events."""
NUM_MATCHES = 3 * NUM_GROUPS + 6
"""Columns of a block without its generated layers."""


@dataclass(frozen=True)
class InterestOptions:
    """Options of every `InterestBlock` of a model.

    Args:
        rank: size of each generated layer.
        projection: whether a learned projection P is applied to the frozen vectors.
        generated: whether the layer that the history generates is there.
        scenario: whether the layer that the scenario's LLM vector generates is there.
        cross_scenario: whether items of other scenarios are read.

    Raises:
        ValueError: the rank is below 1.
    """

    rank: int = 16
    projection: bool = True
    generated: bool = True
    scenario: bool = False
    cross_scenario: bool = True

    def __post_init__(self) -> None:
        check_positive(rank=self.rank)


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
        c   = (C t) * (W q + U r)                   a layer that the scenario generates reads both

    t is the code of the LLM's vector of the row's scenario, see `KnowledgeReducer`. The other
    columns are: largest and mean S and log(1 + count) of the events by label and by whether they
    are of the row's scenario, mean of S with decaying weights, S of the newest event, logsumexp of
    the attention logits, r . q, the sum of a, and whether the candidate has a vector. All columns
    are normalised by batch statistics over all ranks.

    Shape:
        items: (M + 1, dim), float, unit vectors; zeros for an item without a vector, and last.
        histories: candidates and events, as positions in `items`.
        row: the events of each row, by `row_events`.
        weight: (B,), float, 0 for padding rows; None means all 1.
        returns: (B, out_dim), float.

    Args:
        scenarios: (S, H), float, LLM vectors of the scenarios, for `options.scenario`.

    Raises:
        ValueError: a size is below 1, or `scenarios` is missing, has another S or is not finite.

    Source:
        Target attention is that of DIN (Zhou et al., KDD 2018) with a null slot. The generated
        layers are the meta layers of LLM4MSR on the item's side: knowledge of the user, or of the
        scenario, makes the weights diag(A z) V that read the item.
    """

    def __init__(
        self,
        dim: int,
        max_len: int,
        num_scenarios: int,
        options: InterestOptions | None = None,
        scenarios: Tensor | None = None,
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
        self.scenario_layer: ScenarioLayer | None = None
        if options.scenario:
            if scenarios is None or len(scenarios) != num_scenarios:
                given = "none" if scenarios is None else str(len(scenarios))
                raise ValueError(f"scenarios must have {num_scenarios} vectors; got {given}.")
            self.scenario_layer = ScenarioLayer(dim, scenarios, options.rank)
        self.out_dim = NUM_MATCHES + options.rank * (options.generated + options.scenario)
        self.norm = PartitionedNorm(self.out_dim, 1)

    def forward(
        self, items: Tensor, histories: Histories, row: RowEvents, weight: Tensor | None = None
    ) -> Tensor:
        """Returns the columns of each row."""
        columns = self.columns(items, histories, row)
        rows = RowGroups(torch.zeros_like(row.scenario))
        normalised: Tensor = self.norm(columns, rows, weight)
        return normalised

    def attention(self, items: Tensor, histories: Histories, row: RowEvents) -> Attention:
        """Returns similarities and weights of each row's events, for explanations."""
        candidate = items.index_select(0, histories.candidate)
        similarity = self._similarity(items, candidate, row)
        weights, _ = _with_null_slot(self._logits(similarity, row), row.present)
        return Attention(similarity * row.present, weights)

    def columns(self, items: Tensor, histories: Histories, row: RowEvents) -> Tensor:
        """Returns the columns of each row before their normalisation."""
        candidate = items.index_select(0, histories.candidate)
        similarity = self._similarity(items, candidate, row)
        attention, log_sum = _with_null_slot(self._logits(similarity, row), row.present)
        value = self._value(row.positive, row.negative)
        # r . q is a sum over the similarities, so that no vector of an event is read again.
        signed = value * similarity
        single = [
            (self._decay_weights(row.present) * signed).sum(1),
            similarity[:, -1] * row.present[:, -1],
            log_sum,
            (attention * signed).sum(1),
            attention.sum(1),
            candidate.square().sum(1).clamp(max=1),
        ]
        columns = [
            row.largest(similarity),
            row.sums(similarity) / row.counts.clamp(min=1),
            torch.log1p(row.counts),
            torch.stack(single, dim=1),
        ]
        if self.item_factors is not None:
            item_code = self._projected_linear(candidate, self.item_factors)
            columns.append(self._user_code(items, histories, row) * item_code)
        if self.scenario_layer is not None:
            attended = weighted_sum(items, row.events, attention * value)
            columns.append(self._scenario_code(candidate, attended, row.scenario))
        return torch.cat(columns, dim=1)

    def _similarity(self, items: Tensor, candidate: Tensor, row: RowEvents) -> Tensor:
        """Returns q . k_h = (v P P^T) . v_h, (B, K): no event is projected."""
        if self.projection is not None:
            candidate = candidate @ (self.projection @ self.projection.T)
        return gather_dot(candidate, items, row.events)

    def _logits(self, similarity: Tensor, row: RowEvents) -> Tensor:
        places = similarity.shape[1]
        logits = self.sharpness.exp() * similarity + self.position[self.max_len - places :]
        other = self.other_scenario.index_select(0, row.scenario).unsqueeze(1)
        return torch.addcmul(logits, other, row.other, value=-1)

    def _value(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Returns s of each event; 0 in a place without an event."""
        return self.label_value[0] * negative + self.label_value[1] * positive

    def _decay_weights(self, present: Tensor) -> Tensor:
        """Returns weights that decay by e^-e^decay per place and sum to 1, or to 0 if empty."""
        age = torch.arange(present.shape[1] - 1, -1, -1, device=present.device)
        weights = torch.exp(-self.decay.exp() * age) * present
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)

    def _user_code(self, items: Tensor, histories: Histories, row: RowEvents) -> Tensor:
        """Returns A z of each row."""
        assert self.user_factors is not None
        # Once per history, as in a request that ranks many items for one user.
        code = self._history_code(items, *row.of_history)
        return histories.of_rows(code) if self.options.cross_scenario else code

    def _history_code(
        self, items: Tensor, events: Tensor, positive: Tensor, negative: Tensor
    ) -> Tensor:
        """Returns A z of each history."""
        assert self.user_factors is not None
        # The values and the decay learn from the other columns. Without a gradient here, the
        # vectors of the events are read once and not again in the backward pass.
        value = self._value(positive, negative).detach()
        present = positive + negative
        mean = value / present.sum(1, keepdim=True).clamp(min=1)
        recent = value * self._decay_weights(present).detach()
        # Both sums of a history follow one another, so that the second finds its events in cache.
        weights = torch.stack([mean, recent], dim=1).flatten(0, 1)
        z = weighted_sum(items, events.repeat_interleave(2, dim=0), weights)
        z = torch.unflatten(z, 0, (-1, 2)).flatten(1)
        factors = torch.unflatten(self.user_factors.weight, 1, (2, -1)).transpose(0, 1)
        return torch.addmm(self.user_factors.bias, z, self._projected(factors).flatten(0, 1))

    def _scenario_code(self, candidate: Tensor, attended: Tensor, scenario: Tensor) -> Tensor:
        """Returns c of each row, from v of its item and the attended sum of v_h."""
        layer = self.scenario_layer
        assert layer is not None
        read = self._projected_linear(candidate, layer.item_factors)
        read = read + self._projected_linear(attended, layer.history_factors)
        return layer.codes().index_select(0, scenario) * read

    def _projected_linear(self, vectors: Tensor, linear: nn.Linear) -> Tensor:
        """Returns the layer's output for the projected vectors v P, (B, R)."""
        product = vectors @ self._projected(linear.weight)
        return product if linear.bias is None else product + linear.bias

    def _projected(self, factors: Tensor) -> Tensor:
        """Returns factors (..., R, D) that read v P as factors (..., D, R) that read v."""
        return factors.mT if self.projection is None else self.projection @ factors.mT


class ScenarioLayer(nn.Module):
    """Factors of the layer of an `InterestBlock` that the LLM's vector of a scenario generates."""

    def __init__(self, dim: int, scenarios: Tensor, rank: int) -> None:
        super().__init__()
        scenarios = scenarios.float()
        self.register_buffer("knowledge", scenarios)
        std, mean = torch.std_mean(scenarios, dim=0, correction=0)
        self.reducer = KnowledgeReducer(mean, std, rank)
        self.factors = nn.Linear(rank + 1, rank, bias=False)
        self.item_factors = nn.Linear(dim, rank)
        self.history_factors = nn.Linear(dim, rank, bias=False)

    def codes(self) -> Tensor:
        """Returns C t of every scenario, (S, rank)."""
        codes: Tensor = self.factors(self.reducer(self.get_buffer("knowledge")))
        return codes


def _with_null_slot(logits: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Returns softmax weights without the null slot, and the logsumexp with it."""
    # Products with 0 and finite numbers: exp of minus infinity takes several times as long.
    logits = logits * present
    top = logits.detach().amax(1, keepdim=True).clamp(min=0)
    weights = torch.exp(logits - top) * present
    total = weights.sum(1, keepdim=True) + torch.exp(-top)
    return weights / total, (top + total.log()).squeeze(1)
