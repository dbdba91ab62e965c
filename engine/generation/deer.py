"""DEER: a diffusion drafter proposes a block in one pass, the AR verifier keeps its own part of it.

Follows "Draft with Diffusion, Verify with Autoregressive Models" (arXiv 2512.15176) with the
drafter-invariant rule of Daliri et al. (arXiv 2408.07978): drafter and verifier draw with the same
noise, so every committed token is the one that the verifier alone would have drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from engine.base import BaseStats
from engine.decoding.verification import count_accepted_prefix
from engine.draft_planner import AcceptanceModel, Candidate, CostCurve, plan_lengths
from engine.generation.draft_cutter import DraftCutter
from engine.generation.draft_source import DraftSource, draft_source
from engine.generation.predicted_output import MAX_PREDICTED, predicted_draft
from engine.generation.strategy import (
    GenerationStrategy,
    ModelRole,
    Rows,
    RowsOutput,
    StepTiming,
    StrategyContext,
)
from engine.request.options import Acceptance
from engine.request.sequence import Sequence

_PROBE_EVERY = 32
"""Steps between full-length drafts, which keep the estimates of deep positions fresh."""
_PROBE_SHARE = 8
"""One sequence in so many is probed: a full draft of a whole large batch is a dear step."""


@dataclass
class DraftStats(BaseStats):
    """Counts over all sequences since the last reset."""

    num_verify_steps: int = 0  # a sequence in a step is one
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_undrafted_steps: int = 0
    num_predicted_tokens: int = 0  # of the draft tokens: those that the client gave

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of the drafted tokens; 0 before the first draft."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


class Deer(GenerationStrategy):
    """One-pass diffusion draft, AR verify: the tokens of `ar`, several at a time."""

    honours: ClassVar[frozenset[str]] = frozenset({"draft_length", "prediction"})

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        self.stats = DraftStats()
        self._source = self.make_source(context)
        self._acceptance = AcceptanceModel(self._source.max_length)
        self._verify_cost = CostCurve(context.verify_costs)
        self._cutter: DraftCutter | None = None
        if context.entropy is not None:
            self._cutter = DraftCutter(context.entropy, context.sampler, self._acceptance)
        self._whole: set[str] = set()  # sequences whose draft of this step is not to be cut
        self._num_steps = 0

    @classmethod
    def can_run(cls, available: frozenset[ModelRole]) -> bool:
        return ModelRole.VERIFIER in available and len(available) > 1

    def make_source(self, context: StrategyContext) -> DraftSource:
        return draft_source(context)

    @property
    def shares_pages(self) -> bool:
        diffusion = self.context.diffusion
        return diffusion is None or diffusion.kv_is_prefix_function

    def max_rows(self, sequence: Sequence) -> int:
        longest = self._source.max_length
        return 1 + (max(longest, MAX_PREDICTED) if sequence.options.prediction else longest)

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        if drafted:
            return self.verify(sequences, self._drafts(sequences, drafted))
        return self.draft(sequences) or self.verify(sequences, {})

    def draft(self, sequences: Seq[Sequence]) -> list[Rows]:
        """Blocks for those sequences for which a draft is worth its cost."""
        rows = []
        for sequence, length in zip(sequences, self._plan(sequences), strict=True):
            missing = self._source.reading_rows(sequence)
            if missing is not None:
                rows.append(missing)
            elif length:
                rows.append(self._block(sequence, length))
        return rows

    def verify(self, sequences: Seq[Sequence], drafts: Mapping[str, list[int]]) -> list[Rows]:
        """The last token and what was drafted after it, for the verifier to judge."""
        rows = []
        for seq in sequences:
            draft = seq.legal_prefix(predicted_draft(seq) or drafts.get(seq.sequence_id, ()))
            token_ids = [seq.token_ids[-1], *draft]
            start = seq.num_tokens - 1
            rows.append(Rows(seq, ModelRole.VERIFIER, token_ids, start, len(token_ids)))
        return rows

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        tokens = [self._accept(output) for output in outputs]
        if self._cutter is not None:
            self._cutter.learn(
                [
                    (output.rows.sequence.sequence_id, len(output.rows.token_ids) - 1, len(own) - 1)
                    for output, own in zip(outputs, tokens, strict=True)
                ]
            )
        return tokens

    def observe(self, timing: StepTiming) -> None:
        if timing.num_prefill_rows:
            return  # the planner chooses between decode steps; a prompt would drown the difference
        if timing.verify.size:
            self._verify_cost.update(*timing.verify)
        self._source.observe(timing)

    def release(self, sequence: Sequence) -> None:
        self._acceptance.forget(sequence.sequence_id)
        self._source.forget(sequence)

    def get_stats(self) -> dict[str, Any]:
        own = self.stats.to_dict()
        if self._cutter is None:
            return own
        return own | {f"entropy_{key}": n for key, n in self._cutter.stats.to_dict().items()}

    def reset_stats(self) -> None:
        self.stats.reset()
        if self._cutter is not None:
            self._cutter.stats.reset()

    def _block(self, sequence: Sequence, length: int) -> Rows:
        """What is drafted for a sequence: the planned length, or more where it is cut later."""
        if self._cutter is None or not self._cutter.is_looking:
            return self._source.rows(sequence, length)
        if sequence.sequence_id not in self._whole:
            length = self._limit(sequence)
        return replace(self._source.rows(sequence, length), wants_logits=True)

    def _drafts(
        self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]
    ) -> Mapping[str, list[int]]:
        if self._cutter is None:
            return {output.rows.sequence.sequence_id: output.token_ids for output in drafted}
        spent_s = self._source.cost(len(drafted))
        return self._cutter.cut(sequences, drafted, self._whole, self._verify_cost, spent_s)

    def _plan(self, sequences: Seq[Sequence]) -> list[int]:
        """Tokens to draft for each; 0 also where the client has given a draft."""
        self._num_steps += 1
        probed = self._probed(len(sequences))
        candidates = [
            self._candidate(seq, is_probed=index in probed) for index, seq in enumerate(sequences)
        ]
        self._whole = {
            seq.sequence_id
            for seq, candidate in zip(sequences, candidates, strict=True)
            if candidate.fixed_length is not None or not _may_be_cut(seq)
        }
        lengths = plan_lengths(candidates, self._verify_cost, self._source.cost)
        if self._cutter is not None:
            self._cutter.decide(candidates, lengths, self._verify_cost)
        return [
            length if candidate.needs_block else 0
            for length, candidate in zip(lengths, candidates, strict=True)
        ]

    def _candidate(self, seq: Sequence, *, is_probed: bool) -> Candidate:
        limit = self._limit(seq)
        predicted = len(predicted_draft(seq))
        if predicted:
            return Candidate((), predicted, needs_block=False)
        fixed = limit if is_probed else None
        if seq.options.draft_length is not None:
            fixed = min(seq.options.draft_length, limit)
        return Candidate(self._acceptance.survivals(seq.sequence_id, limit), fixed)

    def _limit(self, seq: Sequence) -> int:
        return min(self._source.max_length, seq.num_remaining - 1)

    def _probed(self, num_sequences: int) -> range:
        """Which sequences get a full draft in this step whatever it costs; none in most steps."""
        turn, rest = divmod(self._num_steps, _PROBE_EVERY)
        if rest:
            return range(0)
        return range(turn % min(_PROBE_SHARE, num_sequences), num_sequences, _PROBE_SHARE)

    def _accept(self, output: RowsOutput) -> list[int]:
        draft = output.rows.token_ids[1:]
        num_accepted = count_accepted_prefix(draft, output.token_ids)
        self._count(output.rows.sequence, len(draft), num_accepted)
        return output.token_ids[: num_accepted + 1]

    def _cut_off(self, sequence: Sequence, num_verified: int) -> list[float]:
        if self._cutter is None:
            return []
        return self._cutter.cut_off(sequence.sequence_id, num_verified)

    def _count(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        self.stats.num_verify_steps += 1
        if predicted_draft(sequence):
            self.stats.num_predicted_tokens += num_drafted
        elif num_drafted:
            cut_off = self._cut_off(sequence, num_drafted)
            self._acceptance.update(sequence.sequence_id, num_drafted, num_accepted, cut_off)
        else:
            self.stats.num_undrafted_steps += 1
            self._acceptance.rest(sequence.sequence_id)
        self.stats.num_draft_tokens += num_drafted
        self.stats.num_accepted_tokens += num_accepted
        sequence.record_draft(num_drafted, num_accepted)


def _may_be_cut(sequence: Sequence) -> bool:
    """By the rule of p / q a length that depends on the drawn tokens would show in the output."""
    return sequence.options.acceptance is Acceptance.COUPLED
