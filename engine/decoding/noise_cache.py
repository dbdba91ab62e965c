"""Rows of noise kept for those who ask again: a drafter, its verifier, and the next draft.

With drafts of k tokens a position's noise is wanted by the drafter, by the verifier, and after a
rejection by both again. On a CPU, where making a row costs as much as a small model's layer, it
pays to make each row once, and a few before they are asked for. The rows are a pure function, so
nothing ever has to be invalidated.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.decoding.noise import gumbel

NoiseKey = tuple[tuple[int, int, int], int]
"""(seed, prompt index, choice) and the output position."""


Gumbel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""`gumbel`, or what gives the same sooner; without denoising steps."""

NUM_AT_ONCE = 16
"""Rows that are made together where fewer are missing: one alone costs most of what they cost."""


class NoiseCache:
    """The most recently used rows of noise on the CPU, for one vocabulary and one thread."""

    def __init__(self, max_bytes: int = 64 << 20, make: Gumbel = gumbel) -> None:
        self._make = make
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
            return self._make_rows(keys, vocab_size)
        for key in keys:  # first of all, so that making room cannot drop what is wanted now
            if key in self._slots:
                self._slots.move_to_end(key)
        missing = self._missing(keys)
        if missing:
            num_ahead = min(NUM_AT_ONCE, len(self._pool) - len(keys)) // len(missing)
            missing = self._missing([*missing, *_following(missing, num_ahead)])
            slots = [self._take_slot(key) for key in missing]
            self._pool.index_copy_(0, torch.tensor(slots), self._make_rows(missing, vocab_size))
        return self._pool.index_select(0, torch.tensor([self._slots[key] for key in keys]))

    def _missing(self, keys: Sequence[NoiseKey]) -> list[NoiseKey]:
        return [key for key in dict.fromkeys(keys) if key not in self._slots]

    def _make_rows(self, keys: Sequence[NoiseKey], vocab_size: int) -> Tensor:
        numbers = torch.tensor([(*stream, position) for stream, position in keys])
        seeds, prompts, choices, positions = numbers.T.contiguous().unbind(0)
        return self._make(seeds, prompts, choices, positions, vocab_size)

    def _take_slot(self, key: NoiseKey) -> int:
        num_used = len(self._slots)
        slot = num_used if num_used < len(self._pool) else self._slots.popitem(last=False)[1]
        self._slots[key] = slot
        return slot


def _following(keys: Sequence[NoiseKey], num_at_once: int) -> list[NoiseKey]:
    """The positions after each key, which will be asked for soon; with it so many."""
    return [(stream, at + ahead) for stream, at in keys for ahead in range(1, num_at_once)]
