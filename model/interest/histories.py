"""Histories of a batch, and the events of each row by scenario and label."""

from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

if TYPE_CHECKING:  # importing TorchRec takes two seconds, and a config needs none of it
    from msrec.data.loading.batch import HistoryEvents

NUM_GROUPS = 4
"""Groups of events: same scenario with label 1, with label 0, other scenarios with 1, with 0."""

FAR = 1e30
"""Above every similarity, and finite: times 0 it is 0."""


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
    def of_batch(cls, events: "HistoryEvents") -> Self:
        """Returns the histories of `Batch.sequence`."""
        return cls(events.candidate, events.events, events.scenario, events.label, events.bag)

    @property
    def is_by_row(self) -> bool:
        """Whether each row has its own history, in the order of the rows."""
        # An exported program takes any numbers of rows and histories.
        return not torch.compiler.is_exporting() and len(self.events) == len(self.bag)

    def of_rows(self, values: Tensor) -> Tensor:
        """Returns the value of each row's history, (U, ...) -> (B, ...)."""
        return values if self.is_by_row else values.index_select(0, self.bag)


class RowEvents(NamedTuple):
    """Events of each row; what the blocks of all sources share.

    Shape:
        scenario: (B,), int64, of the row.
        events: (B, K), int64, positions of the items.
        positive, negative: (B, K), float, 1 for an event that counts with label 1, with label 0.
        present: (B, K), float, 1 for an event that counts.
        other: (B, K), float, 1 for a place that is not of the row's scenario.
        group: (B, K), int64 in [0, 4], the group of each event, see `NUM_GROUPS`; 4 for a place
            without an event that counts.
        outside: (B, 4, K), float, 0 for the events of each group, -`FAR` for the others.
        counts: (B, 4), float, events in each group.
        of_history: events, positive and negative of each history, (U, K); of each row if only
            events of its scenario count.
    """

    scenario: Tensor
    events: Tensor
    positive: Tensor
    negative: Tensor
    present: Tensor
    other: Tensor
    group: Tensor
    outside: Tensor
    counts: Tensor
    of_history: tuple[Tensor, Tensor, Tensor]

    def sums(self, values: Tensor) -> Tensor:
        """Returns the sum of the values (B, K) in each group, (B, 4)."""
        zeros = values.new_zeros(values.shape[0], NUM_GROUPS + 1)
        return zeros.scatter_add(1, self.group, values)[:, :NUM_GROUPS]

    def largest(self, values: Tensor) -> Tensor:
        """Returns the largest of the values (B, K) in each group, (B, 4); 0 without an event."""
        # The gradient goes to one place per group. Searching for it needs none.
        place = (values.detach().unsqueeze(1) + self.outside).max(2).indices
        return values.gather(1, place) * (self.counts > 0)


def row_events(histories: Histories, scenario: Tensor, cross_scenario: bool) -> RowEvents:
    """Returns the events of each row; without `cross_scenario`, those of its scenario alone."""
    of_history = (histories.events, *_signs(histories))
    events, positive, negative = map(histories.of_rows, of_history)
    is_other = histories.of_rows(histories.scenario) != scenario.unsqueeze(1)
    # Products of zeros and ones: on a CPU a choice by a mask takes several times as long.
    other = is_other.to(positive.dtype)
    same = 1 - other
    if not cross_scenario:
        positive, negative = positive * same, negative * same
        of_history = events, positive, negative
    present = positive + negative
    groups = [positive * same, negative * same, positive * other, negative * other]
    by_group = torch.stack(groups, dim=1)
    return RowEvents(
        scenario=scenario,
        events=events,
        positive=positive,
        negative=negative,
        present=present,
        other=other,
        group=(NUM_GROUPS - present * (NUM_GROUPS - 2 * other - negative)).long(),
        outside=(by_group - 1) * FAR,
        counts=by_group.sum(2),
        of_history=of_history,
    )


def _signs(histories: Histories) -> tuple[Tensor, Tensor]:
    """Returns 1.0 for each event with label 1, and for each with label 0; 0.0 elsewhere."""
    mask, is_positive = histories.scenario >= 0, histories.label > 0
    kind = histories.label.dtype
    return (mask & is_positive).to(kind), (mask & ~is_positive).to(kind)
