"""Base of the sequence encoders: options, and the vectors of the events that a row reads."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.model.interest.histories import Histories
from msrec.model.layers.mlp import check_positive

INIT_STD = 0.01
"""Standard deviation of the initial values of learned label, scenario and position vectors."""


@dataclass(frozen=True)
class EncoderOptions:
    """Options of the sequence encoders; each encoder reads those that it has.

    Args:
        num_heads: attention heads of SIM, BST and HSTU; a divisor of the vectors' size.
        num_layers: blocks of BST and HSTU.
        attention_dims: layer sizes of DIN's activation unit.
        dropout: rate in the activation unit, or of the output of attention and feed-forward layers.

    Raises:
        ValueError: a number is below 1.
    """

    num_heads: int = 2
    num_layers: int = 1
    attention_dims: tuple[int, ...] = (80, 40)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_positive(num_heads=self.num_heads, num_layers=self.num_layers)


class RowEvents(NamedTuple):
    """Candidate and events of each row.

    Shape:
        candidate: (B, D), float.
        events: (B, K, D), float, newest last; zeros in empty places.
        mask: (B, K), bool, whether there is an event.
        is_same: (B, K), bool, whether the event is of the row's scenario.
    """

    candidate: Tensor
    events: Tensor
    mask: Tensor
    is_same: Tensor

    def with_candidate(self) -> tuple[Tensor, Tensor]:
        """Returns the events followed by the candidate, (B, K + 1, D), and their mask."""
        x = torch.cat([self.events, self.candidate.unsqueeze(1)], dim=1)
        return x, functional.pad(self.mask, (0, 1), value=True)


class SequenceEncoder(nn.Module):
    """Base of the modules that turn candidate and ordered history into columns of the backbone.

    The vector of an event is the sum of its item's vector, a vector of its label and a vector of
    its scenario. The candidate has the vector of its row's scenario and none of a label.

    Shape:
        items: (M + 1, D) or more, float, vectors of distinct items; zeros from M on.
        histories: candidates and events, as positions in `items`.
        scenario: (B,), int64.
        returns: (B, out_dim), float.

    Raises:
        ValueError: a size is below 1.
    """

    out_dim: int

    def __init__(self, dim: int, max_len: int, num_scenarios: int) -> None:
        super().__init__()
        check_positive(dim=dim, max_len=max_len, num_scenarios=num_scenarios)
        self.dim, self.max_len = dim, max_len
        self.scenario_vectors = nn.Parameter(INIT_STD * torch.randn(num_scenarios, dim))
        self.label_vectors = nn.Parameter(INIT_STD * torch.randn(2, dim))

    def row_events(self, items: Tensor, histories: Histories, scenario: Tensor) -> RowEvents:
        """Returns the vectors of candidate and events of each row."""
        of_event = histories.scenario.index_select(0, histories.bag)
        mask = of_event >= 0
        # One gather of label and scenario together: row `2 * scenario + label` of their sums.
        sums = (self.scenario_vectors.unsqueeze(1) + self.label_vectors).flatten(0, 1)
        label = (histories.label > 0).to(torch.int64)
        kind = (2 * histories.scenario.clamp(min=0) + label).index_select(0, histories.bag)
        position = histories.events.index_select(0, histories.bag)
        events = functional.embedding(position, items) + functional.embedding(kind, sums)
        candidate = items.index_select(0, histories.candidate)
        candidate = candidate + self.scenario_vectors.index_select(0, scenario)
        is_same = of_event == scenario.unsqueeze(1)
        return RowEvents(candidate, events * mask.unsqueeze(2), mask, is_same)
