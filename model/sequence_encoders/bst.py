"""BST: transformer blocks over the history followed by the candidate."""

import torch
from torch import Tensor, nn

from msrec.model.interest.histories import Histories
from msrec.model.layers.dropout import Dropout
from msrec.model.layers.precision import LayerNorm
from msrec.model.sequence_encoder import INIT_STD, EncoderOptions, SequenceEncoder
from msrec.model.sequence_encoders.attention import MultiHeadAttention

FEED_FORWARD_FACTOR = 4
"""Width of the hidden layer of a feed-forward network, in sizes of the vectors."""


class TransformerBlock(nn.Module):
    """Attention and feed-forward network, each with residual and layer norm after it.

    Shape:
        x: (B, L, D), float.
        mask: (B, L), bool, which places count.
        returns: (B, L, D), float; (B, 1, D) of the last place with `last_only`.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, FEED_FORWARD_FACTOR * dim),
            nn.LeakyReLU(),
            nn.Linear(FEED_FORWARD_FACTOR * dim, dim),
        )
        self.norms = nn.ModuleList([LayerNorm(dim), LayerNorm(dim)])
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, last_only: bool = False) -> Tensor:  # noqa: D102
        query = x[:, -1:] if last_only else x
        query = self.norms[0](query + self.dropout(self.attention(query, x, mask)))
        changed: Tensor = self.norms[1](query + self.dropout(self.feed_forward(query)))
        return changed


class BST(SequenceEncoder):
    """Behaviour sequence transformer: self-attention over history and candidate.

    The sequence is the history and, after it, the candidate, each with a learned vector of its
    place. It passes `num_layers` blocks::

        S = LayerNorm(X + MultiHeadAttention(X))
        F = LayerNorm(S + W2 LeakyReLU(W1 S + b1) + b2)

    Columns are those of the candidate's place after the last block. Empty places are masked.

    Shape:
        items, histories, scenario: as in `SequenceEncoder`.
        returns: (B, dim), float; with an empty history the candidate attends to itself.

    Raises:
        ValueError: a size is below 1, or `num_heads` does not divide `dim`.

    Source:
        Chen et al., DLP-KDD 2019 (arXiv 1905.06874). Learned vectors of places, counted from the
        newest event, as in SASRec (Kang and McAuley, ICDM 2018), where the paper has vectors of
        time differences.
    """

    def __init__(
        self, dim: int, max_len: int, num_scenarios: int, options: EncoderOptions | None = None
    ) -> None:
        super().__init__(dim, max_len, num_scenarios)
        options = options or EncoderOptions()
        self.places = nn.Parameter(INIT_STD * torch.randn(max_len + 1, dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, options.num_heads, options.dropout)
            for _ in range(options.num_layers)
        )
        self.out_dim = dim

    def forward(self, items: Tensor, histories: Histories, scenario: Tensor) -> Tensor:  # noqa: D102
        x, mask = self.row_events(items, histories, scenario).with_candidate()
        x = x + self.places[-x.shape[1] :]
        for number, block in enumerate(self.blocks, 1):
            x = block(x, mask, last_only=number == len(self.blocks))
        return x.squeeze(1)
