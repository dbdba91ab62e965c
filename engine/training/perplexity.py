"""Held-out perplexity, by source."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from engine.training.documents import Document
from engine.training.frozen_verifier import FrozenVerifier


@dataclass(frozen=True)
class Perplexity:
    """Mean surprise of a set of held-out tokens."""

    num_tokens: int
    nats: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / max(1, self.num_tokens))


@torch.inference_mode()
def perplexity_by_source(
    verifier: FrozenVerifier, documents: list[Document], tokenizer: Tokenizer, max_length: int
) -> dict[str, Perplexity]:
    """Every document alone from position 0, cut at `max_length`; the key "all" is all of them."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    device = verifier.device
    for document in documents:
        ids = tokenizer.encode(document.render()).ids[:max_length]
        tokens = torch.tensor([ids], device=device)
        logits = verifier.model(input_ids=tokens, use_cache=False).logits[0, :-1]
        nats = F.cross_entropy(logits.float(), tokens[0, 1:], reduction="sum").item()
        for name in (document.source, "all"):
            totals[name][0] += len(ids) - 1
            totals[name][1] += nats
    return {name: Perplexity(int(n), nats) for name, (n, nats) in sorted(totals.items())}
