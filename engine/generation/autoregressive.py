"""The verifier alone, one token a step: the baseline that every speed-up is measured against."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import ClassVar

from engine.decoding.verification import count_accepted_prefix
from engine.generation.predicted_output import MAX_PREDICTED, predicted_draft
from engine.generation.strategy import GenerationStrategy, ModelRole, Rows, RowsOutput
from engine.request.sequence import Sequence


class Autoregressive(GenerationStrategy):
    """Commits the one token that the verifier draws after the last.

    A client's `prediction` is checked on the way: those of its tokens that come true are committed
    in the same step.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"prediction"})

    def max_rows(self, sequence: Sequence) -> int:
        return 1 + MAX_PREDICTED if sequence.options.prediction else 1

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        rows = []
        for seq in sequences:
            token_ids = [seq.token_ids[-1], *seq.legal_prefix(predicted_draft(seq))]
            start = seq.num_tokens - 1
            rows.append(Rows(seq, ModelRole.VERIFIER, token_ids, start, len(token_ids)))
        return rows

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        return [self._accept(output) for output in outputs]

    def _accept(self, output: RowsOutput) -> list[int]:
        draft = output.rows.token_ids[1:]
        if not draft:
            return output.token_ids
        num_accepted = count_accepted_prefix(draft, output.token_ids)
        output.rows.sequence.record_draft(len(draft), num_accepted, is_predicted=True)
        return output.token_ids[: num_accepted + 1]
