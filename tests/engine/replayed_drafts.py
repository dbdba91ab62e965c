"""A strategy from outside: drafts from known answers, wrong where it wants to be."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import ClassVar

from engine.decoding.verification import count_accepted_prefix
from engine.generation.strategy import GenerationStrategy, ModelRole, Rows, RowsOutput
from engine.request.sequence import Sequence

NUM_DRAFTED = 4


class ReplayedDrafts(GenerationStrategy):
    """Right for 2, 4, 1, 0 and 3 tokens, so that every length is accepted some time."""

    answers: ClassVar[dict[tuple[tuple[int, ...], int], list[int]]] = {}
    """By prompt and seed."""

    def max_rows(self, sequence: Sequence) -> int:
        return 1 + NUM_DRAFTED

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        assert not drafted, "needs no drafter"
        rows = []
        for sequence in sequences:
            token_ids = [sequence.token_ids[-1], *self._draft(sequence)]
            start = sequence.num_tokens - 1
            rows.append(Rows(sequence, ModelRole.VERIFIER, token_ids, start, len(token_ids)))
        return rows

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        commits = []
        for output in outputs:
            draft = output.rows.token_ids[1:]
            num_accepted = count_accepted_prefix(draft, output.token_ids)
            output.rows.sequence.record_draft(len(draft), num_accepted)
            commits.append(output.token_ids[: num_accepted + 1])
        return commits

    def _draft(self, sequence: Sequence) -> list[int]:
        answer = self.answers[tuple(sequence.prompt_token_ids), sequence.params.seed]
        start = sequence.num_output_tokens
        count = min(NUM_DRAFTED, sequence.num_remaining - 1)
        draft = answer[start : start + count]
        wrong = start * 7 // 3 % (NUM_DRAFTED + 1)
        if wrong < len(draft):
            draft[wrong] = (draft[wrong] + 1) % 200
        return draft
