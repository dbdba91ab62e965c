"""How many tokens to draft for each sequence: what the step planner is asked, and fed with."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from operator import is_
from time import perf_counter

from engine.acceptance_model import AcceptanceModel
from engine.draft_planner import Candidate, Cost, CostCurve
from engine.generation.draft_source import DraftSource
from engine.generation.predicted_output import predicted_draft
from engine.generation.strategy import StepTiming
from engine.plan_rests import Ask
from engine.request.sequence import Sequence
from engine.step_costs import StepShape
from engine.step_planner import THOUGHT_SHARE, StepPlanner, StepTime

_CHEAP_TO_READ = 128
"""Tokens: what is written between two trials, and some more."""


class DraftLengths:
    """Chooses lengths before anything is drawn, from measured costs and acceptance so far."""

    def __init__(self, source: DraftSource, verify_costs: Seq[tuple[int, float]]) -> None:
        self.planner = StepPlanner(source.max_length, CostCurve(verify_costs), source.cost)
        self.fixed: set[str] = set()
        """Sequences whose length in this step is not for anybody to change."""
        self._source = source
        self._undrafted: Seq[Sequence] = ()
        """The last batch, if nobody was drafted for by the planner's own choice alone."""
        self._is_resting = False
        self._num_passed = self._num_to_pass = 0
        """Steps without drafts, like the one before, since the last that was learnt from."""

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

    def plan(self, sequences: Seq[Sequence]) -> list[int]:
        """Tokens to draft for each; 0 also where the client has given a draft."""
        self._is_resting = self._may_rest(sequences)
        if self._is_resting:
            return [0] * len(sequences)
        started = perf_counter()
        asks = [self._ask(seq) for seq in sequences]
        lengths = self.planner.plan(asks)
        if not self.planner.is_resting:
            self.planner.thought_s = perf_counter() - started
        self.fixed = {
            ask.sequence_id for ask in asks if ask.fixed_length is not None or self.planner.is_trial
        }
        is_plain = not any(lengths) and all(ask.fixed_length is None for ask in asks)
        self._undrafted = list(sequences) if is_plain else ()
        return [n if ask.needs_block else 0 for n, ask in zip(lengths, asks, strict=True)]

    def limit(self, sequence: Sequence) -> int:
        """The most tokens that a draft for it may have now."""
        return min(self._source.max_length, sequence.num_remaining - 1)

    def observe(self, timing: StepTiming) -> None:
        if self._is_resting and self._num_passed < self._num_to_pass:
            self._num_passed += 1
            self.planner.pass_step(timing.seconds)
            return
        started = perf_counter()
        self._learn(timing)
        self._num_to_pass = int((perf_counter() - started) / (timing.seconds * THOUGHT_SHARE))
        self._num_passed = 0

    def _learn(self, timing: StepTiming) -> None:
        self._source.observe(timing)
        shape = StepShape(timing.num_sequences, timing.num_rows)
        drafting_s = sum(forward.seconds for forward in (*timing.drafts, *timing.denoises))
        step = StepTime(shape, timing.seconds, drafting_s, timing.num_prefill_rows)
        self.planner.observe(step)

    def _may_rest(self, sequences: Seq[Sequence]) -> bool:
        """Whether this batch, like the same one before, is not drafted for: hardly a thought."""
        is_same = len(sequences) == len(self._undrafted) and all(
            map(is_, sequences, self._undrafted)
        )
        return is_same and self.planner.rest_undrafted(len(sequences))

    def _ask(self, seq: Sequence) -> Ask:
        limit, name = self.limit(seq), seq.sequence_id
        predicted = len(predicted_draft(seq)) if seq.options.prediction else 0
        if predicted:
            return Ask(name, limit, predicted, needs_block=False)
        if seq.options.draft_length is not None:
            return Ask(name, limit, min(seq.options.draft_length, limit))
        return Ask(name, limit, is_dear=self._source.num_unread(seq) > _CHEAP_TO_READ)
