"""Rows of noise kept for those who ask again: a drafter, its verifier, and the next draft.

With drafts of k tokens a position's noise is wanted by the drafter, by the verifier, and after a
rejection by both again. On a CPU, where making a row costs as much as a small model's layer, it
pays to make each row once. The rows are a pure function, so nothing ever has to be invalidated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.decoding.noise import gumbel

NoiseKey = tuple[tuple[int, int, int], int]
"""(seed, prompt index, choice) and the output position."""


class NoiseCache:
    """The most recently used rows of noise on the CPU, for one vocabulary and one thread."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._pool = torch.empty(0, 0)
        self._slots: OrderedDict[NoiseKey, int] = OrderedDict()

    def rows(self, keys: Sequence[NoiseKey], vocab_size: int) -> Tensor:
        """The noise of every key, [R, V]; equal to `gumbel` bit for bit."""
        if self._pool.shape[1] != vocab_size:
            self._slots.clear()
            self._pool = torch.empty(max(1, self._max_bytes // (4 * vocab_size)), vocab_size)
        if not keys:
            return self._pool[:0]
        if len(keys) > len(self._pool):
            return _make(keys, vocab_size)
        for key in keys:  # first of all, so that making room cannot drop what is wanted now
            if key in self._slots:
                self._slots.move_to_end(key)
        missing = [key for key in dict.fromkeys(keys) if key not in self._slots]
        if missing:
            slots = [self._take_slot(key) for key in missing]
            self._pool[torch.tensor(slots)] = _make(missing, vocab_size)
        return self._pool[torch.tensor([self._slots[key] for key in keys])]

    def _take_slot(self, key: NoiseKey) -> int:
        num_used = len(self._slots)
        slot = num_used if num_used < len(self._pool) else self._slots.popitem(last=False)[1]
        self._slots[key] = slot
        return slot


def _make(keys: Sequence[NoiseKey], vocab_size: int) -> Tensor:
    numbers = torch.tensor([(*stream, position) for stream, position in keys])
    seeds, prompts, choices, positions = numbers.T.contiguous().unbind(0)
    return gumbel(seeds, prompts, choices, positions, vocab_size)
