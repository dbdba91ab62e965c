"""SpecDiff: drafts of several denoising steps, revealed by confidence, and AR verify.

After "Speculative diffusion decoding" (Christopher et al., arXiv 2408.05636). All steps draw with
the noise that the verifier draws with, so a position's token is argmax(log q + G) of the step that
reveals it, and every committed token is the verifier's own. The rule of p / q is not offered: what
is revealed early was drawn without what stands left of it, so no q is known that it was drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import ClassVar

from engine.decoding.diffusion_sampler import DiffusionSampler
from engine.denoising_planner import DenoisingModel, plan_denoising
from engine.generation.draft_and_verify import DraftAndVerify
from engine.generation.draft_source import DraftSource, draft_source
from engine.generation.entropy_pace import EntropyPace
from engine.generation.partial_draft import Denoised, PartialDraft, reveal
from engine.generation.predicted_output import predicted_draft
from engine.generation.strategy import ModelRole, Rows, RowsOutput, StrategyContext
from engine.request.errors import InvalidRequestError
from engine.request.options import Acceptance, GenerationOptions, Remasking
from engine.request.sampling_params import SamplingParams
from engine.request.sequence import Sequence

DEFAULT_THRESHOLD = 0.8
"""Of the shipped models the best of 0.5, 0.8 and 0.95, by a few hundredths of a token a verify."""
MAX_PLANNED_STEPS = 4
MAX_STEPS = 32
_PROBE_EVERY = 16
"""Steps between drafts that do what the planner would not, so that it knows both sides."""


class SpecDiff(DraftAndVerify):
    """Several denoising steps a draft, AR verify: the tokens of `ar`.

    `denoising_steps` is how many a draft gets, fewer where nothing is left to reveal; without it
    another step is made while it pays. With entropy-adaptive control what a request leaves open,
    length, steps and whether to draft at all, follows the entropy of its drafts instead.
    """

    honours: ClassVar[frozenset[str]] = DraftAndVerify.honours | {
        "denoising_steps",
        "confidence_threshold",
        "unmasking_factor",
        "remasking",
    }
    allows_rejection: ClassVar[bool] = False

    def __init__(self, context: StrategyContext) -> None:
        super().__init__(context)
        self._model = DenoisingModel(MAX_STEPS)
        self._pace: EntropyPace | None = None
        if context.entropy is not None:
            longest = self.source.max_length
            self._pace = EntropyPace(context.entropy, longest, MAX_PLANNED_STEPS)
            self.is_planned_alone = False
        self._drafts: dict[str, PartialDraft] = {}
        self._committed = 0.0  # expected of what has gone to the verifier in this step
        self._spent_s = 0.0
        self._num_planned = 0

    def make_source(self, context: StrategyContext) -> DraftSource:
        return draft_source(context, prefer=ModelRole.DIFFUSION)

    def check(
        self, num_prompt_tokens: int, params: SamplingParams, options: GenerationOptions
    ) -> None:
        if options.acceptance is Acceptance.REJECTION:
            message = "acceptance 'rejection' needs drafts of one denoising step: use mode 'deer'"
            raise InvalidRequestError(message, "acceptance")
        if options.remasking is Remasking.RANDOM:
            message = "remasking 'random' is not for drafts: what is revealed must be likely"
            raise InvalidRequestError(message, "remasking")
        if options.denoising_steps is not None and options.denoising_steps > MAX_STEPS:
            message = f"denoising_steps of a draft must be at most {MAX_STEPS}"
            raise InvalidRequestError(message, "denoising_steps")
        DiffusionSampler.of(options)  # refuses what contradicts itself

    def propose(self, sequences: Seq[Sequence], drafted: Seq[RowsOutput]) -> list[Rows]:
        if not drafted:
            self._drafts.clear()
            self._committed = self._spent_s = 0.0
            return self.draft(sequences) or self.verify(sequences, {})
        self._spent_s += self.source.cost(len(drafted))
        self._take(drafted)
        again = self._once_more(sequences)
        finished = [seq for seq in sequences if seq.sequence_id not in again]
        return [*again.values(), *self._verify_finished(finished)]

    def plan(self, sequences: Seq[Sequence]) -> Seq[int]:
        lengths = super().plan(sequences)
        if self._pace is None:
            return lengths
        return [
            length
            if seq.options.draft_length is not None or predicted_draft(seq)
            else min(self._pace.advice(seq).draft_length, self.lengths.limit(seq))
            for seq, length in zip(sequences, lengths, strict=True)
        ]

    def draft_rows(self, sequence: Sequence, length: int, revealed: Seq[int | None] = ()) -> Rows:
        rows = super().draft_rows(sequence, length, revealed)
        return rows._replace(wants_logits=True)

    def accept(self, outputs: Seq[RowsOutput]) -> list[list[int]]:
        committed = super().accept(outputs)
        for output, token_ids in zip(outputs, committed, strict=True):
            draft = self._drafts.pop(output.rows.sequence.sequence_id, None)
            if draft is None and self._pace is not None:
                self._pace.rest(output.rows.sequence)
            if draft is not None:
                num_verified = len(output.rows.token_ids) - 1
                self._model.update(draft.masked_after, num_verified, len(token_ids) - 1)
        return committed

    def release(self, sequence: Sequence) -> None:
        super().release(sequence)
        self._drafts.pop(sequence.sequence_id, None)
        if self._pace is not None:
            self._pace.forget(sequence)

    def _take(self, drafted: Seq[RowsOutput]) -> None:
        """Reveal, by every request's own rule."""
        if self._pace is not None:
            new = [o for o in drafted if o.rows.sequence.sequence_id not in self._drafts]
            self._pace.take([output for output in new if output.token_ids])
        by_rule: dict[DiffusionSampler, list[Denoised]] = {}
        for output in drafted:
            if not output.token_ids:
                continue  # only read
            sequence = output.rows.sequence
            draft = self._drafts.setdefault(
                sequence.sequence_id, PartialDraft.of(len(output.token_ids))
            )
            rule = revealing_rule(sequence.options)
            by_rule.setdefault(rule, []).append(Denoised(draft, output))
        for rule, denoised in by_rule.items():
            reveal(rule, denoised)

    def _once_more(self, sequences: Seq[Sequence]) -> dict[str, Rows]:
        """Rows of the drafts that get another denoising step, by sequence."""
        asked, open_to = [], []
        for seq in sequences:
            draft = self._drafts.get(seq.sequence_id)
            if draft is None or draft.is_finished:
                continue
            limit = self._num_steps(seq)
            if limit is None and draft.num_steps < MAX_PLANNED_STEPS:
                open_to.append(seq)
            elif limit is not None and draft.num_steps < min(limit, MAX_STEPS):
                asked.append(seq)
        chosen = [*asked, *self._worth_it(sequences, open_to)]
        return {
            seq.sequence_id: self.draft_rows(seq, len(draft.token_ids), draft.revealed)
            for seq in chosen
            for draft in [self._drafts[seq.sequence_id]]
        }

    def _num_steps(self, sequence: Sequence) -> int | None:
        """How many steps its draft is to have; None: as many as pay."""
        asked = sequence.options.denoising_steps
        if asked is not None or self._pace is None:
            return asked
        return self._pace.advice(sequence).denoising_steps

    def _worth_it(self, sequences: Seq[Sequence], candidates: Seq[Sequence]) -> list[Sequence]:
        if not candidates:
            return []
        gains = [sum(self._survivals(s, once_more=True)) for s in candidates]
        gains = [g - sum(self._survivals(s)) for g, s in zip(gains, candidates, strict=True)]
        expected = self._committed + self._expected(sequences)
        num_rows = len(sequences) + sum(len(d.token_ids) for d in self._drafts.values())
        spent_s = self._spent_s + self.lengths.verify_cost(num_rows)
        chosen = plan_denoising(gains, expected, spent_s, self.source.cost)
        self._num_planned += 1
        if self._num_planned % _PROBE_EVERY == 0:
            chosen ^= {self._num_planned // _PROBE_EVERY % len(candidates)}
        return [candidates[index] for index in sorted(chosen)]

    def _verify_finished(self, sequences: Seq[Sequence]) -> list[Rows]:
        self._committed += self._expected(sequences)
        drafts = {}
        for seq in sequences:
            draft = self._drafts.get(seq.sequence_id)
            if draft is not None:
                drafts[seq.sequence_id] = draft.token_ids
                self.judge.note_confidences(seq, draft.confidences)
        return self.verify(sequences, drafts)

    def _expected(self, sequences: Seq[Sequence]) -> float:
        """Tokens that they would commit if their drafts were verified as they are."""
        return len(sequences) + sum(sum(self._survivals(seq)) for seq in sequences)

    def _survivals(self, sequence: Sequence, *, once_more: bool = False) -> list[float]:
        draft = self._drafts.get(sequence.sequence_id)
        if draft is None:
            return []
        return self._model.survivals(draft.is_masked, draft.num_steps, once_more=once_more)


def revealing_rule(options: GenerationOptions) -> DiffusionSampler:
    """Which masks a step reveals, for options whose silence was filled from the defaults.

    A threshold gives way to a factor, and a random order to that of confidence: only a default can
    have brought them.
    """
    threshold = options.confidence_threshold
    if options.unmasking_factor is not None:
        threshold = None
    elif threshold is None:
        threshold = DEFAULT_THRESHOLD
    remasking = options.remasking
    if remasking is Remasking.RANDOM:
        remasking = Remasking.LOW_CONFIDENCE
    return DiffusionSampler(remasking, None, threshold, options.unmasking_factor)
