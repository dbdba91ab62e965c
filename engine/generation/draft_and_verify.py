"""What all strategies share that let the verifier judge drafts: which, how long, and what stands.

The rule is the drafter-invariant one of Daliri et al. (arXiv 2408.07978): drafts are drawn
with the noise that the verifier draws with, so every committed token is the one that the verifier
alone would have drawn, wherever the draft came from. A request may choose another (`draft_judge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, ClassVar

from engine.base import BaseStats
from engine.generation.draft_judge import DraftJudge
from engine.generation.draft_lengths import DraftLengths
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
from engine.request.errors import InvalidRequestError
from engine.request.options import Acceptance, GenerationOptions
from engine.request.outputs import StepTrace
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence


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


class DraftAndVerify(GenerationStrategy):
    """Plans drafts, shows them to the verifier, and counts what became of them."""

    honours: ClassVar[frozenset[str]] = frozenset(
        {"draft_length", "prediction", "acceptance", "skip_verify_confidence"}
    )
    allows_rejection: ClassVar[bool] = True
    """Whether every drafted token is drawn from a distribution that is known, given those before
    it alone; elsewhere every draft is judged by the coupled rule."""

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        self.stats = DraftStats()
        self.source = self.make_source(context)
        self.lengths = DraftLengths(self.source, context.verify_costs, context.batch_costs)
        self.judge = DraftJudge(context.sampler)
        self.is_planned_alone = not self.source.reads_texts
        """Whether there is nothing to do for a sequence for which the planner plans no draft."""

    @classmethod
    def can_run(cls, available: frozenset[ModelRole]) -> bool:
        drafting = {ModelRole.DRAFTER, ModelRole.DIFFUSION}
        return ModelRole.VERIFIER in available and not drafting.isdisjoint(available)

    def make_source(self, context: StrategyContext) -> DraftSource:
        return draft_source(context)

    @property
    def shares_pages(self) -> bool:
        diffusion = self.context.diffusion
        return diffusion is None or diffusion.kv_is_prefix_function

    def is_lossless_with(self, options: GenerationOptions) -> bool:
        return options.skip_verify_confidence is None

    def check(
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        if options.acceptance is not Acceptance.REJECTION:
            return
        if options.skip_verify_confidence is not None:
            message = "skip_verify_confidence and acceptance 'rejection' exclude each other"
            raise InvalidRequestError(message, "skip_verify_confidence")

    def max_rows(self, sequence: Sequence) -> int:
        longest = self.source.max_length
        return 1 + (max(longest, MAX_PREDICTED) if sequence.options.prediction else longest)

    def draft(self, sequences: Seq[Sequence]) -> list[Rows]:
        """Blocks for those sequences for which a draft is worth its cost."""
        if self.is_planned_alone and self.lengths.keep_resting(sequences):
            return []
        self.judge.forget_drafts()
        rows = []
        for sequence, length in zip(sequences, self.plan(sequences), strict=True):
            missing = self.source.reading_rows(sequence)
            if missing is not None:
                rows.append(missing)
            elif length:
                rows.append(self.draft_rows(sequence, length))
        return rows

    def plan(self, sequences: Seq[Sequence]) -> Seq[int]:
        """Tokens to draft for each; 0 where that does not pay, or the client has given a draft."""
        return self.lengths.plan(sequences)

    def draft_rows(self, sequence: Sequence, length: int, revealed: Seq[int | None] = ()) -> Rows:
        """A block, asking for what the rule will want to know of it."""
        rows = self.source.rows(sequence, length, revealed)
        wants_logits = sequence.options.skip_verify_confidence is not None
        wants_logprobs = self.judges_by_rejection(sequence)
        if not (wants_logits or wants_logprobs):
            return rows
        return rows._replace(wants_logits=wants_logits, wants_logprobs=wants_logprobs)

    def verify(self, sequences: Seq[Sequence], drafts: Mapping[str, list[int]]) -> list[Rows]:
        """The last token and what was drafted after it, for the verifier to judge."""
        rows = []
        for seq in sequences:
            token_ids = [seq.token_ids[-1]]
            if drafts or seq.options.prediction:
                draft = predicted_draft(seq) or drafts.get(seq.sequence_id) or ()
                token_ids += seq.legal_prefix(draft)
            rows.append(
                Rows(
                    seq,
                    ModelRole.VERIFIER,
                    token_ids,
                    seq.num_tokens - 1,
                    len(token_ids),
                    wants_logprobs=self.judges_by_rejection(seq),
                )
            )
        return rows

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        for output in outputs:
            if output.logprobs is not None or len(output.rows.token_ids) > 1:
                break
        else:
            return self._accept_undrafted(outputs)
        committed = self.judge.judge(outputs)
        for output, token_ids in zip(outputs, committed, strict=True):
            sequence, drafted = output.rows.sequence, output.rows.token_ids[1:]
            self._count(sequence, len(drafted), len(token_ids) - 1)
            if sequence.options.shows_steps:
                sequence.trace = StepTrace(tuple(drafted), len(token_ids) - 1)
        return committed

    def judges_by_rejection(self, sequence: Sequence) -> bool:
        """A greedy sequence's distributions are points, where both rules say the same."""
        asks = sequence.options.acceptance is Acceptance.REJECTION
        return asks and self.allows_rejection and not sequence.params.is_greedy

    def cut_off(self, sequence: Sequence, num_verified: int) -> list[float]:
        """Chances of the tokens that were drafted for a sequence but not verified."""
        return []

    def observe(self, timing: StepTiming) -> None:
        self.lengths.observe(timing)

    def release(self, sequence: Sequence) -> None:
        self.lengths.planner.forget(sequence.sequence_id)
        self.source.forget(sequence)

    def get_stats(self) -> dict[str, Any]:
        planned = self.lengths.planner.get_stats()
        return self.stats.to_dict() | {f"planner_{key}": n for key, n in planned.items()}

    def reset_stats(self) -> None:
        self.stats.reset()
        self.lengths.planner.reset_stats()

    def _accept_undrafted(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        """What the verifier has drawn by itself."""
        count = len(outputs)
        self.lengths.planner.take_undrafted(count)
        self.stats.num_verify_steps += count
        self.stats.num_undrafted_steps += count
        for output in outputs:
            output.rows.sequence.record_draft(0, 0)
        return [output.token_ids for output in outputs]

    def _count(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        planner = self.lengths.planner
        self.stats.num_verify_steps += 1
        is_predicted = bool(predicted_draft(sequence))
        if is_predicted:
            planner.count_committed(1 + num_accepted)
            self.stats.num_predicted_tokens += num_drafted
        else:
            cut_off = self.cut_off(sequence, num_drafted) if num_drafted else ()
            planner.take(sequence.sequence_id, num_drafted, num_accepted, cut_off)
            self.stats.num_undrafted_steps += not num_drafted
        self.stats.num_draft_tokens += num_drafted
        self.stats.num_accepted_tokens += num_accepted
        sequence.record_draft(num_drafted, num_accepted, is_predicted=is_predicted)
