"""Held-out perplexity: by source, and by position in a row."""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from engine.training.corpus import Corpus, RowReader
from engine.training.documents import Document
from engine.training.frozen_verifier import FrozenVerifier

POSITIONS = (0, 64, 128, 256, 512, 768, 1024, 2048)
ROWS = 64  # of the whole context, at most
ROWS_AT_ONCE = 4


@dataclass(frozen=True)
class Perplexity:
    """Mean surprise of a set of held-out tokens."""

    num_tokens: int
    nats: float

    @property
    def mean_nats(self) -> float:
        return self.nats / max(1, self.num_tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean_nats)


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


@torch.inference_mode()
def perplexity_by_position(
    verifier: FrozenVerifier, documents: list[Document], tokenizer: Tokenizer, max_length: int
) -> dict[str, Perplexity]:
    """Rows of whole documents up to the context's length, as training has them; few are longer.

    Keys are the positions "64 to 127" of the tokens that are predicted; position 0 is not.
    """
    length = min(max_length, POSITIONS[-1])
    reader = RowReader(_in_memory(documents, tokenizer), {}, seed=0)
    num_rows = max(1, min(ROWS, len(reader.corpus.tokens) // length))
    by_position = torch.zeros(length, dtype=torch.float64)
    for begin in range(0, num_rows, ROWS_AT_ONCE):
        rows = reader.batch(min(ROWS_AT_ONCE, num_rows - begin), length).to(verifier.device)
        logits = verifier.model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        nats = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        by_position[1:] += nats.view(len(rows), -1).sum(0).cpu().double()
    found = {}
    for first, end in pairwise((*(p for p in POSITIONS if p < length), length)):
        num_tokens = num_rows * (end - max(first, 1))
        name = f"{first:,} to {end - 1:,}"
        found[name] = Perplexity(num_tokens, by_position[first:end].sum().item())
    return found


def _in_memory(documents: list[Document], tokenizer: Tokenizer) -> Corpus:
    encoded = [item.ids for item in tokenizer.encode_batch([d.render() for d in documents])]
    offsets = np.cumsum([0, *map(len, encoded)])
    tokens = np.asarray([token for ids in encoded for token in ids], np.uint16)
    return Corpus(tokens, offsets, [d.source for d in documents])
