"""The step planner: decides step after step how much is drafted, and learns from what comes.

It knows sequences by their ids alone and needs no model, so it runs on a recorded trace as well.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from math import exp
from typing import Any, NamedTuple

from engine.acceptance_model import AcceptanceModel, Credit
from engine.base import BaseStats
from engine.draft_planner import (
    Candidate,
    Cost,
    Plan,
    asked_lengths,
    plan_drafts,
    weigh,
)
from engine.draft_trials import Trials
from engine.plan_rests import Ask, Rests
from engine.step_costs import DraftCosts, StepCosts, StepShape

_SURER = 1.005
"""By how much lengths one by one must beat the same length for all, whose cost is known better."""
_FIRST_DRAFTS, _DEAREST_FIRST = 48, 2.0
"""Drafts of full length before anything is decided: of what becomes of them nothing is known.
Such a step may lose no more than the time of two without."""
_HOPE = 0.7
"""Tokens by which a lone sequence is thought luckier: of it alone there is something to learn."""
_READ_AFTER = 256
"""Steps without anybody to try drafts on after which a prompt is read for it."""

THOUGHT_SHARE = 0.02
"""Of all time, for planning; and as much for learning from steps that are like many others."""

_NO_PLAN = Plan((), 0.0, 1.0)


class StepTime(NamedTuple):
    """What one step was, all its sequences counted, and what it took."""

    shape: StepShape
    seconds: float  # from its beginning to the next one's
    drafting_s: float  # of these: in drafting forwards
    num_prefill_rows: int = 0


@dataclass
class PlannerStats(BaseStats):
    """What was decided, what was expected of it, and what came of it."""

    num_plans: int = 0  # steps
    num_rests: int = 0  # of these: like the step before, without a thought
    num_trials: int = 0  # of these: other than what seemed best
    num_drafting_plans: int = 0  # of these: with a draft of the planner's choice
    num_measured_steps: int = 0  # plans that the sums below are of
    sum_expected_s: float = 0.0
    sum_measured_s: float = 0.0
    sum_expected_tokens: float = 0.0
    sum_committed_tokens: float = 0.0


class StepPlanner:
    """Follows the best plan by what is known, but for trials and short rests."""

    def __init__(self, num_positions: int, verify_cost: Cost, draft_cost: DraftCosts) -> None:
        """`verify_cost` is what forwards took at start-up, by rows."""
        self.acceptance = AcceptanceModel(num_positions)
        self.costs = StepCosts(verify_cost)
        self.stats = PlannerStats()
        self.candidates: Seq[Candidate] = ()
        self.latest = _NO_PLAN
        """The plan that is followed now."""
        self.is_trial = False
        self.thought_s = 0.0
        """What a plan takes, as whoever asks has measured it: plans hold the longer for it."""
        self.verify_cost: Cost = verify_cost
        """Seconds of the step under way without its drafting forwards, by the rows of those who
        were planned for."""
        self._draft_cost = draft_cost
        self._trials = Trials(num_positions)
        self._credit = Credit()
        self._is_chosen_one_by_one = False
        self._length_counts = [0] * (num_positions + 1)
        self._weighed = (_NO_PLAN, _NO_PLAN)  # without and with drafts
        self._rests = Rests()
        self.is_resting = False
        self._num_asked = self._num_committed = 0
        self._others = StepShape(0, 0)  # of other strategies, in the last step
        self._num_waits = 0
        self._num_first_drafts = 0
        self._pays = True
        """Whether drafts were last chosen where nothing had to be read for them; until they are,
        nobody's prompt is read to draft."""

    def plan(self, asks: Seq[Ask]) -> list[int]:
        """Tokens to draft for each."""
        self.stats.num_plans += 1
        self._num_asked, self._num_committed = len(asks), 0
        self.is_trial = False
        self.is_resting = self._rests.may_go_on(asks)
        if self.is_resting:
            self.stats.num_rests += 1
            lengths = self._rests.lengths(asks)
        else:
            self.candidates = self._candidates(asks)
            self.verify_cost = self._cost_by_rows()
            self.latest = self._choose()
            lengths = list(self.latest.lengths)
            self._note(asks, lengths)
        self._count(asks, lengths)
        return lengths

    def rest_undrafted(self, num_sequences: int) -> bool:
        """Like `plan` for the same sequences as before, of whom none was drafted for.

        False where it is time to plan anew.
        """
        if not self._rests.spend():
            return False
        self.stats.num_plans += 1
        self.stats.num_rests += 1
        self._num_asked, self._num_committed = num_sequences, 0
        self.is_trial, self.is_resting = False, True
        self._length_counts[0] += num_sequences
        return True

    def take(
        self, sequence_id: str, num_drafted: int, num_accepted: int, cut_off: Seq[float] = ()
    ) -> None:
        """Learn what became of one sequence's draft, or that it had none."""
        if num_drafted:
            self.acceptance.update(sequence_id, num_drafted, num_accepted, cut_off)
        else:
            self.acceptance.rest(sequence_id)

    def count_committed(self, num_tokens: int) -> None:
        """Of a sequence that was planned for in this step."""
        self._num_committed += num_tokens

    def observe(self, step: StepTime) -> None:
        """Learn what a step took, once it is known what it committed."""
        self._trials.save(step.seconds)
        seconds = step.seconds - step.drafting_s
        slower = self.costs.update(step.shape, seconds, step.num_prefill_rows)
        self._draft_cost.pass_step(1.0 if step.drafting_s else slower)
        num_others = max(step.shape.num_sequences - self._num_asked, 0)
        num_rows = step.shape.num_rows - self._num_asked - sum(self.latest.lengths)
        self._check_promise()
        self._others = StepShape(num_others, max(num_rows, num_others) if num_others else 0)
        if not (step.num_prefill_rows or self.is_resting):
            self._compare(step)

    def _check_promise(self) -> None:
        """Compare what was chosen one by one with what came of it."""
        promised = 0.0
        if self._is_chosen_one_by_one:
            gain = self.latest.committed - len(self.latest.lengths)
            promised = gain / self._credit.share * self._num_asked / len(self.latest.lengths)
        self._credit.update(promised, self._num_committed - self._num_asked if promised else 0)

    def _compare(self, step: StepTime) -> None:
        stats = self.stats
        stats.num_measured_steps += 1
        stats.sum_expected_s += self.latest.seconds
        stats.sum_measured_s += step.seconds
        stats.sum_expected_tokens += self.latest.committed
        stats.sum_committed_tokens += self._num_committed

    def pass_step(self, seconds: float) -> None:
        """A step without drafts of which nothing is to be learnt."""
        self._trials.save(seconds)

    def forget(self, sequence_id: str) -> None:
        self.acceptance.forget(sequence_id)

    def get_stats(self) -> dict[str, Any]:
        """Counts, and as gauges what was last expected without drafts and with the best ones."""
        undrafted, drafted = self._weighed
        return {
            **self.stats.to_dict(),
            **{f"num_length_{n}": count for n, count in enumerate(self._length_counts)},
            "undrafted_step_s": undrafted.seconds if undrafted.lengths else 0.0,
            "undrafted_tokens_per_s": undrafted.rate,
            "drafted_step_s": drafted.seconds if drafted.lengths else 0.0,
            "drafted_tokens_per_s": drafted.rate,
        }

    def reset_stats(self) -> None:
        self.stats.reset()
        self._length_counts = [0] * len(self._length_counts)

    def _choose(self) -> Plan:
        """The best plan, or a trial."""
        lengths = asked_lengths(self.candidates)
        asked = weigh(self.candidates, lengths, self.verify_cost, self._draft_cost)
        single = plan_drafts(self.candidates, self.verify_cost, self._draft_cost)
        self._rests.end()
        self._is_chosen_one_by_one = False
        if single is None:
            self._weighed = (asked, _NO_PLAN)
            return asked
        if self._num_first_drafts < _FIRST_DRAFTS:
            full = self._even(len(self._length_counts) - 1)
            if full.seconds - full.committed / asked.rate < asked.seconds * _DEAREST_FIRST:
                self._weighed = (asked, single)
                self._num_first_drafts += sum(length > 0 for length in full.lengths)
                return full
        single, even = self._believed(single, asked), self._best_even(single)
        drafted = single if single.rate > even.rate * _SURER else even
        self._weighed = (asked, drafted)
        # To try the best for one or two sequences would be cheap and teach little.
        best, other = (drafted, asked) if drafted.rate > asked.rate else (asked, even)
        trial = self._trials.due(best, other, lambda length: self._worth_a_trial(length, best))
        self.is_trial = trial is not None
        if trial is None:
            lead = 0.0 if best is drafted else 1.0 - drafted.rate / best.rate
            num_paid = int(self.thought_s / (best.seconds * THOUGHT_SHARE))
            self._rests.begin(lead, len(lengths), num_paid)
        self._is_chosen_one_by_one = best is single and trial is None
        return trial or best

    def _believed(self, plan: Plan, asked: Plan) -> Plan:
        gain = (plan.committed - asked.committed) * self._credit.share
        return plan._replace(committed=asked.committed + gain)

    def _best_even(self, single: Plan) -> Plan:
        """The best of the lengths about the mean of a plan, if all had the same."""
        drafted = [length for length in single.lengths if length]
        usual = round(sum(drafted) / len(drafted))
        lengths = [n for n in (usual - 1, usual, usual + 1) if n > 0]
        return max(map(self._even, lengths), key=lambda plan: plan.rate)

    def _even(self, length: int) -> Plan:
        lengths = [
            min(length, len(c.survivals)) if c.fixed_length is None else c.fixed_length
            for c in self.candidates
        ]
        return weigh(self.candidates, lengths, self.verify_cost, self._draft_cost)

    def _worth_a_trial(self, length: int, best: Plan) -> Plan | None:
        """The same length for all, if it may be better than the best plan for all that is known."""
        plan = self._even(length)
        count = len(plan.lengths)
        shapes = [StepShape(count, count + sum(p.lengths)) for p in (plan, best)]
        chances = self.acceptance.doubts(length)
        doubt = self.costs.doubt(*shapes) + sum(chances) * count / plan.committed
        return plan if plan.rate * exp(doubt) > best.rate else None

    def _cost_by_rows(self) -> Cost:
        count, others = max(1, len(self.candidates)), self._others
        longest = max((len(c.survivals) for c in self.candidates), default=0)
        own = self.costs.by_rows(count + others.num_sequences, 1 + longest)
        if not others.num_sequences:
            return own
        return lambda num_rows: own(num_rows + others.num_rows)

    def _candidates(self, asks: Seq[Ask]) -> list[Candidate]:
        is_held = [ask.is_dear and ask.fixed_length is None and not self._pays for ask in asks]
        reads = -1
        if any(is_held) and all(
            held or ask.fixed_length is not None for held, ask in zip(is_held, asks, strict=True)
        ):
            self._num_waits += 1
            reads = is_held.index(True) if self._num_waits % _READ_AFTER == 0 else -1
        return [
            self._candidate(ask, ask.limit if index == reads else 0 if held else ask.fixed_length)
            for index, (ask, held) in enumerate(zip(asks, is_held, strict=True))
        ]

    def _candidate(self, ask: Ask, fixed_length: int | None) -> Candidate:
        if not ask.needs_block:
            return Candidate((), fixed_length, needs_block=False)
        hope = _HOPE / self._num_asked**2
        survivals = self.acceptance.survivals(ask.sequence_id, ask.limit, hope)
        return Candidate(survivals, fixed_length)

    def _note(self, asks: Seq[Ask], lengths: Seq[int]) -> None:
        self._rests.note(asks, lengths)
        cheap = [
            length > 0
            for length, ask in zip(lengths, asks, strict=True)
            if ask.fixed_length is None and not ask.is_dear
        ]
        if cheap and not self.is_trial:
            self._pays = any(cheap)

    def _count(self, asks: Seq[Ask], lengths: Seq[int]) -> None:
        own = [n for n, ask in zip(lengths, asks, strict=True) if ask.fixed_length is None]
        for length in own:
            self._length_counts[length] += 1
        self.stats.num_drafting_plans += any(own)
        self.stats.num_trials += self.is_trial
