"""SIM with hard search: target attention over the events of the row's scenario alone."""

import torch
from torch import Tensor

from msrec.model.interest.histories import Histories
from msrec.model.layers.dropout import Dropout
from msrec.model.sequence_encoder import EncoderOptions, SequenceEncoder
from msrec.model.sequence_encoders.attention import MultiHeadAttention


class SIM(SequenceEncoder):
    """Search-based interest model, hard search: attention over events of the row's scenario.

    With the vectors q of the candidate and k_h of event h::

        r = MultiHeadAttention(query q, keys and values k_h of the events h of the row's scenario)
        columns = [r, q]

    Shape:
        items, histories, scenario: as in `SequenceEncoder`.
        returns: (B, 2 * dim), float; r is 0 for a row without such an event.

    Raises:
        ValueError: a size is below 1, or `num_heads` does not divide `dim`.

    Source:
        Pi et al., CIKM 2020 (arXiv 2006.05639). Hard search by the scenario, where the paper
        searches by the category of the item, which not every data set has; among the newest
        `max_len` events, where the paper searches the whole history; scaled dot products and no
        vectors of time intervals in the attention.
    """

    def __init__(
        self, dim: int, max_len: int, num_scenarios: int, options: EncoderOptions | None = None
    ) -> None:
        super().__init__(dim, max_len, num_scenarios)
        options = options or EncoderOptions()
        self.attention = MultiHeadAttention(dim, options.num_heads)
        self.dropout = Dropout(options.dropout)
        self.out_dim = 2 * dim

    def forward(self, items: Tensor, histories: Histories, scenario: Tensor) -> Tensor:  # noqa: D102
        row = self.row_events(items, histories, scenario)
        is_hit = row.mask & row.is_same
        r = self.attention(row.candidate.unsqueeze(1), row.events, is_hit).squeeze(1)
        r = self.dropout(r) * is_hit.any(dim=1, keepdim=True)
        return torch.cat([r, row.candidate], dim=1)
