"""DEER: a diffusion drafter proposes a block in one pass, the AR verifier keeps its own part of it.

Follows "Draft with Diffusion, Verify with Autoregressive Models" (arXiv 2512.15176) with the
drafter-invariant rule of Daliri et al. (arXiv 2408.07978): drafter and verifier draw with the same
noise, so every committed token is the one that the verifier alone would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from engine.base import BaseStats
from engine.decoding.verification import count_accepted_prefix
from engine.draft_planner import AcceptanceModel, Candidate, CostCurve, plan_lengths
from engine.generation.strategy import (
    GenerationStrategy,
    ModelRole,
    Rows,
    RowsOutput,
    StepTiming,
    StrategyContext,
)
from engine.request.sequence import Sequence

_PROBE_EVERY = 32
"""Steps between full-length drafts, which keep the estimates of deep positions fresh."""
_PROBE_SHARE = 8
"""One sequence in so many is probed: a full draft of a whole large batch is a dear step."""


@dataclass
class HybridStats(BaseStats):
    """Counts over all sequences since the last reset."""

    num_verify_steps: int = 0  # a sequence in a step is one
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_undrafted_steps: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of the drafted tokens; 0 before the first draft."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


class HybridEngine(GenerationStrategy):
    """One-pass diffusion draft, AR verify: the tokens of `ar`, several at a time."""

    needs = frozenset({ModelRole.VERIFIER, ModelRole.DRAFTER})

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        assert context.mask_token_id is not None
        self._max_length = min(context.max_draft_length, context.block_size - 1)
        self._masks = [context.mask_token_id] * (context.block_size - 1)
        self._acceptance = AcceptanceModel(self._max_length)
        self._verify_cost = CostCurve(context.verify_costs)
        self._draft_cost = CostCurve(context.draft_costs)
        self._num_steps = 0
        self.stats = HybridStats()

    @property
    def max_rows(self) -> int:
        return 1 + self._max_length

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        if drafted:
            return self._verify_rows(sequences, drafted)
        return self._draft_rows(sequences) or self._verify_rows(sequences, ())

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        return [self._accept(output) for output in outputs]

    def observe(self, timing: StepTiming) -> None:
        if timing.num_prefill_rows:
            return  # the planner chooses between decode steps; a prompt would drown the difference
        self._verify_cost.update(timing.num_rows, timing.verify_s)
        if timing.num_blocks:
            self._draft_cost.update(timing.num_blocks, timing.draft_s)

    def release(self, sequence: Sequence) -> None:
        self._acceptance.forget(sequence.sequence_id)

    def get_stats(self) -> dict[str, Any]:
        return self.stats.to_dict()

    def reset_stats(self) -> None:
        self.stats.reset()

    def _draft_rows(self, sequences: Seq[Sequence]) -> list[Rows]:
        lengths = self._plan(sequences)
        return [
            Rows(
                sequence,
                ModelRole.DRAFTER,
                [sequence.token_ids[-1], *self._masks],
                sequence.num_tokens - 1,
                length,
            )
            for sequence, length in zip(sequences, lengths, strict=True)
            if length
        ]

    def _plan(self, sequences: Seq[Sequence]) -> list[int]:
        self._num_steps += 1
        limits = [min(self._max_length, seq.num_remaining - 1) for seq in sequences]
        probed = self._probed(len(sequences))
        candidates = []
        for index, (seq, limit) in enumerate(zip(sequences, limits, strict=True)):
            fixed = limit if index in probed else None
            if seq.draft_length is not None:
                fixed = min(seq.draft_length, limit)
            survivals = self._acceptance.survivals(seq.sequence_id, limit)
            candidates.append(Candidate(survivals, fixed))
        return plan_lengths(candidates, self._verify_cost, self._draft_cost)

    def _probed(self, num_sequences: int) -> range:
        """Which sequences get a full draft in this step whatever it costs; none in most steps."""
        turn, rest = divmod(self._num_steps, _PROBE_EVERY)
        if rest:
            return range(0)
        return range(turn % min(_PROBE_SHARE, num_sequences), num_sequences, _PROBE_SHARE)

    def _verify_rows(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        drafts = {output.rows.sequence.sequence_id: output.token_ids for output in drafted}
        rows = []
        for seq in sequences:
            draft = seq.legal_prefix(drafts.get(seq.sequence_id, ()))
            token_ids = [seq.token_ids[-1], *draft]
            start = seq.num_tokens - 1
            rows.append(Rows(seq, ModelRole.VERIFIER, token_ids, start, len(token_ids)))
        return rows

    def _accept(self, output: RowsOutput) -> list[int]:
        draft = output.rows.token_ids[1:]
        num_accepted = count_accepted_prefix(draft, output.token_ids)
        sequence = output.rows.sequence
        self.stats.num_verify_steps += 1
        if draft:
            self.stats.num_draft_tokens += len(draft)
            self.stats.num_accepted_tokens += num_accepted
            self._acceptance.update(sequence.sequence_id, len(draft), num_accepted)
        else:
            self.stats.num_undrafted_steps += 1
            self._acceptance.rest(sequence.sequence_id)
        sequence.record_draft(len(draft), num_accepted)
        return output.token_ids[: num_accepted + 1]
