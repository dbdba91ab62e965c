"""What a drafter proposes at every anchor of a text, and what an evaluation must know of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.decoding.noise_cache import NoiseCache
from engine.decoding.sampler import sample
from engine.decoding.sampling_table import SamplingTable
from engine.models.dflash import DFlashDrafter
from engine.request.sampling_params import SamplingParams
from engine.training.blocks import block_hidden
from engine.training.frozen_verifier import FrozenVerifier, Reading

ANCHORS_AT_ONCE = 32  # of each row, through the drafter's layers
LOGITS_AT_ONCE = 1 << 24  # through the output head; its noise then fits the sampler's cache
# Token ids [N] -> what they add to the logits of the token after them [N, V]
Bias = Callable[[Tensor], Tensor]


class Proposer(Protocol):
    """A drafter of blocks, whether or not it reads the verifier's hidden states."""

    @property
    def num_drafts(self) -> int:
        """Tokens drafted in a block, K - 1."""

    @property
    def taps(self) -> tuple[int, ...]:
        """Verifier layers whose hidden states it reads; empty where it reads tokens alone."""

    @property
    def markov(self) -> Bias | None:
        """Its Markov head, if it has one."""

    def blocks(self, reading: Reading, anchors: Tensor) -> Tensor:
        """Anchors [B, A] in rows that the verifier has read -> [B, A, K - 1, H]."""

    def head(self, hidden: Tensor) -> Tensor:
        """[N, K - 1, H] -> logits [N, K - 1, V], without the Markov head."""


class DFlashProposer:
    """A DFlash drafter beside its verifier, which lends it embedding and output head."""

    def __init__(self, drafter: DFlashDrafter, verifier: FrozenVerifier) -> None:
        self._drafter, self._verifier = drafter, verifier
        self.num_drafts = drafter.config.block_size - 1
        self.taps = drafter.config.target_layer_ids
        self.markov: Bias | None = None if drafter.markov is None else drafter.markov.bias

    def blocks(self, reading: Reading, anchors: Tensor) -> Tensor:
        return block_hidden(self._drafter, self._verifier, reading, anchors)

    def head(self, hidden: Tensor) -> Tensor:
        return self._verifier.head(hidden)


@dataclass(frozen=True)
class Anchors:
    """Where blocks stand, [N] each: text of the batch, number of the output, and its token."""

    texts: Tensor
    outputs: Tensor
    token_ids: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, begin: int, end: int) -> "Anchors":
        return Anchors(*(x[begin:end] for x in (self.texts, self.outputs, self.token_ids)))


class EngineDraws:
    """The engine's own sampler: output t of text i is drawn with the noise of (seed i, 0, 0, t)."""

    def __init__(self, seeds: list[int], temperature: float, device: torch.device) -> None:
        params = [SamplingParams(seed=seed, temperature=temperature) for seed in seeds]
        self._table = SamplingTable.build([(p, 0, 0) for p in params], device)
        self._cache = NoiseCache() if device.type == "cpu" else None

    def __call__(self, logits: Tensor, texts: Tensor, outputs: Tensor) -> Tensor:
        """logits [R, V] for these outputs [R] of these texts [R] -> tokens [R]"""
        return sample(logits, self._table, texts, outputs, self._cache)


def pick_drafts(
    logits: Tensor, anchors: Anchors, draws: EngineDraws, markov: Bias | None
) -> Tensor:
    """Logits of whole blocks [N, K - 1, V] -> the tokens proposed [N, K - 1].

    A Markov head is asked from left to right: it must know the token before, first the anchor's.
    """
    N, depth, _ = logits.shape
    outputs = anchors.outputs[:, None] + 1 + torch.arange(depth, device=logits.device)
    if markov is None:
        texts = anchors.texts[:, None].expand(N, depth).flatten()
        return draws(logits.flatten(0, 1), texts, outputs.flatten()).view(N, depth)
    picked, previous = [], anchors.token_ids
    for j in range(depth):
        previous = draws(logits[:, j] + markov(previous), anchors.texts, outputs[:, j])
        picked.append(previous)
    return torch.stack(picked, dim=1)


def block_logits(
    proposer: Proposer, reading: Reading, first: Tensor, num_anchors: Tensor, vocab_size: int
) -> Iterator[tuple[Anchors, Tensor]]:
    """Blocks at the first `num_anchors` [B] outputs of every row, output 0 of it at `first` [B].

    Yields anchors and their logits [N, K - 1, V], as many at once as is good for memory.
    """
    ids, device = reading.token_ids, reading.token_ids.device
    at_once = max(1, LOGITS_AT_ONCE // (proposer.num_drafts * vocab_size))
    for begin in range(0, int(num_anchors.max()), ANCHORS_AT_ONCE):
        outputs = begin + torch.arange(ANCHORS_AT_ONCE, device=device)
        wanted = outputs < num_anchors[:, None]
        places = (first[:, None] + outputs).clamp(max=ids.shape[1] - 1)
        hidden = proposer.blocks(reading, places)[wanted]
        texts, columns = wanted.nonzero().unbind(1)
        anchors = Anchors(texts, outputs[columns], ids[texts, places[wanted]])
        for start in range(0, len(anchors), at_once):
            end = start + at_once
            yield anchors.part(start, end), proposer.head(hidden[start:end])
