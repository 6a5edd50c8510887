"""DIN: events weighted by an MLP that compares each of them with the candidate."""

import torch
from torch import Tensor, nn

from msrec.model.interest.histories import Histories
from msrec.model.layers.mlp import MLP, Hidden
from msrec.model.sequence_encoder import EncoderOptions, SequenceEncoder


class DIN(SequenceEncoder):
    """Deep interest network: sum of the events, weighted by an MLP of event and candidate.

    With the vectors q of the candidate and k_h of event h::

        a_h = MLP([k_h, q, k_h - q, k_h * q])      one number, without softmax
        r   = sum_h a_h k_h
        columns = [r, q]

    Shape:
        items, histories, scenario: as in `SequenceEncoder`.
        returns: (B, 2 * dim), float; r is 0 for an empty history.

    Raises:
        ValueError: a size is below 1.

    Source:
        Zhou et al., KDD 2018. ReLU in the activation unit, where the paper has Dice or PReLU, so
        that a row does not depend on the other rows of its batch.
    """

    def __init__(
        self, dim: int, max_len: int, num_scenarios: int, options: EncoderOptions | None = None
    ) -> None:
        super().__init__(dim, max_len, num_scenarios)
        options = options or EncoderOptions()
        hidden = MLP(4 * dim, options.attention_dims, Hidden(dropout=options.dropout))
        self.unit = nn.Sequential(hidden, nn.Linear(hidden.out_dim, 1))
        self.out_dim = 2 * dim

    def forward(self, items: Tensor, histories: Histories, scenario: Tensor) -> Tensor:  # noqa: D102
        row = self.row_events(items, histories, scenario)
        k, q = row.events, row.candidate.unsqueeze(1).expand_as(row.events)
        weights = self.unit(torch.cat([k, q, k - q, k * q], dim=2)).squeeze(2) * row.mask
        r = (weights.unsqueeze(1) @ k).squeeze(1)
        return torch.cat([r, row.candidate], dim=1)
