"""Optional heads of a drafter: what the token before says of the next one, and how sure a draft is.

All masks of a block are predicted in one pass, so a mask knows only which tokens may stand before
it, not which one was drawn. Both heads follow DSpark (arXiv 2607.05147): a low-rank Markov head
adds what the drawn token says, and a confidence head estimates the chance of acceptance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


MAX_TABLE_BYTES = 64 << 20


class MarkovHead(nn.Module):
    """A bias on a token's logits by the token drafted just before it, of low rank.

    The names of its two tables tell optimizers that they are an embedding and an output head.
    """

    def __init__(self, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self._table: Tensor | None = None
        self.embed_previous = nn.Embedding(vocab_size, rank)
        self.lm_head = nn.Linear(rank, vocab_size, bias=False)
        nn.init.normal_(self.embed_previous.weight, std=rank**-0.5)
        nn.init.zeros_(self.lm_head.weight)  # a fresh head changes nothing

    def bias(self, previous_ids: Tensor) -> Tensor:
        """The tokens before, [N] -> what to add to the logits of the next, [N, V]."""
        if self._table is not None:
            return self._table.index_select(0, previous_ids)
        return self.lm_head(self.embed_previous(previous_ids))  # type: ignore[no-any-return]

    @torch.no_grad()
    def tabulate(self) -> None:
        """Keep the bias after every token where the vocabulary is small: [V, V].

        A draft's tokens wait for each other, and looking a row up costs a tenth of multiplying by
        the output head. The weights must be what they are to remain.
        """
        vocab_size, item_size = self.lm_head.out_features, self.lm_head.weight.element_size()
        if vocab_size**2 * item_size <= MAX_TABLE_BYTES:
            self._table = self.lm_head(self.embed_previous.weight)


class ConfidenceHead(nn.Module):
    """Log-odds that a drafted token is the verifier's, given that all before it were."""

    def __init__(self, hidden_size: int, markov_rank: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size + markov_rank, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden: Tensor, previous: Tensor | None) -> Tensor:
        """Final hidden [N, H] and the Markov embedding of the token before [N, r] -> [N]."""
        features = hidden if previous is None else torch.cat((hidden, previous), dim=-1)
        return self.score(features)[..., 0]  # type: ignore[no-any-return]
