"""Optional heads of a drafter: what the token before says of the next one, and how sure a draft is.

All masks of a block are predicted in one pass, so a mask knows only which tokens may stand before
it, not which one was drawn. Both heads follow DSpark (arXiv 2607.05147): a low-rank Markov head
adds what the drawn token says, and a confidence head estimates the chance of acceptance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MarkovHead(nn.Module):
    """A bias on a token's logits by the token drafted just before it, of low rank.

    The names of its two tables tell optimizers that they are an embedding and an output head.
    """

    def __init__(self, vocab_size: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.embed_previous = nn.Embedding(vocab_size, rank)
        self.lm_head = nn.Linear(rank, vocab_size, bias=False)
        nn.init.normal_(self.embed_previous.weight, std=rank**-0.5)
        nn.init.zeros_(self.lm_head.weight)  # a fresh head changes nothing

    def bias(self, previous_ids: Tensor) -> Tensor:
        """The tokens before, [N] -> what to add to the logits of the next, [N, V]."""
        return self.lm_head(self.embed_previous(previous_ids))  # type: ignore[no-any-return]


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
