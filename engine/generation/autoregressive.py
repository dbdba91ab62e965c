"""The verifier alone, one token a step: the baseline that every speed-up is measured against."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from engine.generation.strategy import GenerationStrategy, ModelRole, Rows, RowsOutput
from engine.request.sequence import Sequence


class Autoregressive(GenerationStrategy):
    """Commits the one token that the verifier draws after the last."""

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        return [
            Rows(seq, ModelRole.VERIFIER, seq.token_ids[-1:], seq.num_tokens - 1, 1)
            for seq in sequences
        ]

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        return [output.token_ids for output in outputs]
