"""How many tokens to draft for each sequence: what the step planner is asked, and fed with."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from time import perf_counter

from engine.acceptance_model import AcceptanceModel
from engine.draft_planner import Candidate, Cost, CostCurve
from engine.generation.draft_source import DraftSource
from engine.generation.predicted_output import predicted_draft
from engine.generation.strategy import StepTiming
from engine.plan_stints import Ask
from engine.request.sequence import Sequence
from engine.step_costs import StepShape
from engine.step_planner import StepPlanner, StepTime

_CHEAP_TO_READ = 128
"""Tokens: what is written between two trials, and some more."""


class DraftLengths:
    """Chooses lengths before anything is drawn, from measured costs and acceptance so far."""

    def __init__(
        self,
        source: DraftSource,
        verify_costs: Seq[tuple[int, float]],
        batch_costs: Seq[tuple[int, int, float]] = (),
    ) -> None:
        timed = [(StepShape(sequences, rows), s) for sequences, rows, s in batch_costs]
        self.planner = StepPlanner(source.max_length, CostCurve(verify_costs), source.cost, timed)
        self.fixed: set[str] = set()
        """Sequences whose length in this step is not for anybody to change."""
        self._source = source
        self._thought_s = 0.0  # in the step under way

    @property
    def acceptance(self) -> AcceptanceModel:
        return self.planner.acceptance

    @property
    def verify_cost(self) -> Cost:
        """Seconds of the step under way by its rows, drafting forwards not counted."""
        return self.planner.verify_cost

    @property
    def latest(self) -> tuple[Seq[Candidate], Seq[int]]:
        """Who was last planned for, drafts that are there already included, and the lengths."""
        return self.planner.candidates, self.planner.latest.lengths

    def keep_resting(self, sequences: Seq[Sequence]) -> bool:
        """Whether nobody is drafted for, as in the step before: most steps where drafts lose."""
        return self.planner.keep_resting([seq.sequence_id for seq in sequences])

    def plan(self, sequences: Seq[Sequence]) -> Seq[int]:
        """Tokens to draft for each; 0 also where the client has given a draft."""
        started = perf_counter()
        ids = [seq.sequence_id for seq in sequences]
        lengths = self.planner.plan(ids, lambda index: self._ask(sequences[index]))
        if self.planner.is_resting:
            return lengths
        asks, is_trial = self.planner.asks, self.planner.is_trial
        self.fixed = {ask.sequence_id for ask in asks if is_trial or ask.fixed_length is not None}
        self._charge(started)
        return [n if ask.needs_block else 0 for n, ask in zip(lengths, asks, strict=True)]

    def limit(self, sequence: Sequence) -> int:
        """The most tokens that a draft for it may have now."""
        return min(self._source.max_length, sequence.num_remaining - 1)

    def observe(self, timing: StepTiming) -> None:
        seconds, self._thought_s = timing.seconds - self._thought_s, 0.0
        if not (timing.drafts or timing.denoises or timing.num_prefill_rows):
            shape = (timing.num_sequences, timing.num_rows)
            if self.planner.pass_rest(shape, seconds):
                return
        started = perf_counter()
        drafting_s = 0.0
        if timing.drafts or timing.denoises:
            drafting_s = sum(forward.seconds for forward in (*timing.drafts, *timing.denoises))
        shape = StepShape(timing.num_sequences, timing.num_rows)
        step = StepTime(shape, seconds, drafting_s, timing.num_prefill_rows)
        if self.planner.observe(step):
            self._source.observe(timing)
            self._charge(started)

    def _charge(self, started: float) -> None:
        """Thought is paid for by itself: what a step costs is what it takes without."""
        seconds = perf_counter() - started
        self._thought_s += seconds
        self.planner.charge(seconds)

    def _ask(self, seq: Sequence) -> Ask:
        limit, name = self.limit(seq), seq.sequence_id
        predicted = len(predicted_draft(seq)) if seq.options.prediction else 0
        if predicted:
            return Ask(name, limit, predicted, needs_block=False)
        if seq.options.draft_length is not None:
            return Ask(name, limit, min(seq.options.draft_length, limit))
        return Ask(name, limit, is_dear=self._source.num_unread(seq) > _CHEAP_TO_READ)
