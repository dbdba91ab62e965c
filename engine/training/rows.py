"""Rows a drafter learns from: the verifier's own rollouts, and now and then a row of the corpus."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.training.corpus import RowReader
from engine.training.rollouts import Rollouts

CORPUS_EVERY = 4  # one batch in so many is corpus text, the rest the verifier's own
ROW_LENGTH = 256  # of a corpus row; rollouts have the length they have


@dataclass(frozen=True)
class Rows:
    """Token ids [B, L], and from which to before which position anchors may stand, [B] each."""

    token_ids: Tensor
    first: Tensor
    end: Tensor
    comes_again: bool = False

    def to(self, device: torch.device) -> "Rows":
        ids, first, end = (x.to(device) for x in (self.token_ids, self.first, self.end))
        return Rows(ids, first, end, self.comes_again)

    def random_anchors(self, count: int) -> Tensor:
        """[B, count] anchors, each with at least one token after it."""
        span = (self.end - 1 - self.first).clamp(min=1)
        at = (torch.rand(len(span), count) * span.cpu()[:, None]).long().to(span.device)
        return self.first[:, None] + at


class RowSource:
    """An endless, resumable supply of rows; either of its two wells may be missing, not both."""

    def __init__(
        self,
        rollouts: Rollouts | None,
        reader: RowReader | None,
        tokens_a_step: int,
        seed: int,
        corpus_every: int = CORPUS_EVERY,
    ) -> None:
        if rollouts is None and reader is None:
            raise ValueError("a drafter needs rollouts or corpus text to learn from")
        self._rollouts, self._reader = rollouts, reader
        self._tokens_a_step, self._corpus_every = tokens_a_step, corpus_every
        self._seed, self._batches = seed, 0

    @property
    def state(self) -> dict[str, Any]:
        reader = {} if self._reader is None else self._reader.state
        return {"reader": reader, "batches": self._batches}

    def restore(self, state: dict[str, Any]) -> None:
        self._batches = state["batches"]
        if self._reader is not None:
            self._reader.restore(state["reader"])

    def next(self, row_length: int = ROW_LENGTH) -> Rows:
        """The next batch; a corpus row has this length, a rollout its own."""
        self._batches += 1
        corpus_turn = self._batches % self._corpus_every == 0
        if self._reader is not None and (self._rollouts is None or corpus_turn):
            tokens = self._reader.batch(max(1, self._tokens_a_step // row_length), row_length)
            first = torch.ones(len(tokens), dtype=torch.int64)
            return Rows(tokens, first, torch.full_like(first, row_length))
        assert self._rollouts is not None
        random = np.random.default_rng((self._seed, self._batches))
        count = max(1, self._tokens_a_step // ROW_LENGTH)
        return Rows(*self._rollouts.batch(count, random), comes_again=True)
