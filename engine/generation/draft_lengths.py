"""How many tokens to draft for each sequence: the planner, and what it is fed with."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

from engine.draft_planner import AcceptanceModel, Candidate, CostCurve, plan_lengths
from engine.generation.draft_source import DraftSource
from engine.generation.predicted_output import predicted_draft
from engine.generation.strategy import StepTiming
from engine.request.sequence import Sequence

_PROBE_EVERY = 32
"""Steps between full-length drafts, which keep the estimates of deep positions fresh."""
_PROBE_SHARE = 8
"""One sequence in so many is probed: a full draft of a whole large batch is a dear step."""
_CHEAP_TO_READ = 128
"""Tokens: what is written between two probes, and some more."""

_NOTHING = Candidate((), 0)


class Plan(NamedTuple):
    """What was chosen for the candidates of one step, drafts that are there already included."""

    candidates: Seq[Candidate]
    lengths: Seq[int]


class DraftLengths:
    """Chooses lengths before anything is drawn, from measured costs and acceptance so far."""

    def __init__(self, source: DraftSource, verify_costs: Seq[tuple[int, float]]) -> None:
        self.acceptance = AcceptanceModel(source.max_length)
        self.verify_cost = CostCurve(verify_costs)
        self.fixed: set[str] = set()
        """Sequences whose length in this step is not the planner's choice."""
        self.latest = Plan((), ())
        self._source = source
        self._num_steps = 0
        self._pays = True
        """Whether drafts were last chosen where nothing had to be read for them; until they are,
        nobody's prompt is read to draft."""

    def plan(self, sequences: Seq[Sequence]) -> list[int]:
        """Tokens to draft for each; 0 also where the client has given a draft."""
        self._num_steps += 1
        probed = self._probed(sequences)
        dear = {i for i, seq in enumerate(sequences) if self._is_dear_to_read(seq)}
        held_back = dear - probed if not self._pays else set()
        candidates = [
            _NOTHING if i in held_back else self._candidate(seq, is_probed=i in probed)
            for i, seq in enumerate(sequences)
        ]
        self.fixed = {
            seq.sequence_id
            for seq, candidate in zip(sequences, candidates, strict=True)
            if candidate.fixed_length is not None
        }
        lengths = plan_lengths(candidates, self.verify_cost, self._source.cost)
        self.latest = Plan(candidates, lengths)
        chosen = [
            length > 0
            for i, (length, candidate) in enumerate(zip(lengths, candidates, strict=True))
            if candidate.fixed_length is None and i not in dear
        ]
        if chosen:
            self._pays = any(chosen)
        return [
            length if candidate.needs_block else 0
            for length, candidate in zip(lengths, candidates, strict=True)
        ]

    def limit(self, sequence: Sequence) -> int:
        """The most tokens that a draft for it may have now."""
        return min(self._source.max_length, sequence.num_remaining - 1)

    def observe(self, timing: StepTiming) -> None:
        if timing.num_prefill_rows:
            return  # the planner chooses between decode steps; a prompt would drown the difference
        if timing.verify.size:
            self.verify_cost.update(*timing.verify)
        self._source.observe(timing)

    def _candidate(self, seq: Sequence, *, is_probed: bool) -> Candidate:
        limit = self.limit(seq)
        predicted = len(predicted_draft(seq))
        if predicted:
            return Candidate((), predicted, needs_block=False)
        fixed = limit if is_probed else None
        if seq.options.draft_length is not None:
            fixed = min(seq.options.draft_length, limit)
        return Candidate(self.acceptance.survivals(seq.sequence_id, limit), fixed)

    def _probed(self, sequences: Seq[Sequence]) -> set[int]:
        """Which sequences get a full draft in this step whatever it costs; none in most steps.

        All in turn, but those first of which the drafter has little to read: to read a long prompt
        only to probe would cost more than the estimates are worth.
        """
        turn, rest = divmod(self._num_steps, _PROBE_EVERY)
        if rest:
            return set()
        count = len(sequences)
        first = turn % min(_PROBE_SHARE, count)
        order = sorted(range(count), key=lambda index: (index - first) % _PROBE_SHARE)
        order.sort(key=lambda index: self._is_dear_to_read(sequences[index]))
        return set(order[: len(range(first, count, _PROBE_SHARE))])

    def _is_dear_to_read(self, sequence: Sequence) -> bool:
        if sequence.options.draft_length is not None:
            return False  # the client has chosen
        return self._source.num_unread(sequence) > _CHEAP_TO_READ
