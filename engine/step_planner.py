"""The step planner: decides step after step how much is drafted, and learns from what comes.

It knows sequences by their ids alone and needs no model, so it runs on a recorded trace as well.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from math import exp
from statistics import median
from typing import Any, NamedTuple

from engine.acceptance_model import AcceptanceModel
from engine.draft_planner import Candidate, Choice, Cost, Plan
from engine.draft_trials import FirstDrafts, Trials
from engine.plan_candidates import Candidates
from engine.plan_ledger import Ledger
from engine.plan_stints import Ask, AskOf, Stint
from engine.step_costs import DraftCosts, StepCosts, StepShape

_SURER = 1.005
"""By how much lengths one by one must beat the same length for all, whose cost is known better."""
_BY_LEAD, _LONGEST_BY_LEAD = 100.0, 16
"""Steps that a plan holds, for all the rate that drafts would cost: the clearer, the longer."""
_BY_SIZE, _SHORTEST, _LONGEST_BY_SIZE = 4, 2, 6
"""One such step for so many sequences: of many, the luck of one matters little."""
_FIRST_LOOK, _DISAPPOINTING = 4, 0.85
"""Steps with drafts after which it is looked whether they reach this share of the rate without."""
THOUGHT_SHARE = 0.005
"""Of all time, for planning and learning: without trials, less than drafts can bring or lose."""
_LONGEST_DEBT = 256
"""Steps that are run without a thought at most, however long the last one took."""

_NO_PLAN = Plan((), 0.0, 1.0)


class StepTime(NamedTuple):
    """What one step was, all its sequences counted, and what it took."""

    shape: StepShape
    seconds: float  # from its beginning to the next one's
    drafting_s: float  # of these: in drafting forwards
    num_prefill_rows: int = 0


class StepPlanner:
    """Follows the best plan by what is known, but for trials; thinks only as time allows."""

    def __init__(
        self,
        num_positions: int,
        verify_cost: Cost,
        draft_cost: DraftCosts,
        timed: Seq[tuple[StepShape, float]] = (),
    ) -> None:
        """`verify_cost` is what forwards took at start-up, by rows; `timed` what batches took."""
        self.acceptance = AcceptanceModel(num_positions)
        self.costs = StepCosts(verify_cost, timed)
        self.ledger = Ledger(num_positions)
        self.asks: Seq[Ask] = ()
        self.candidates: Seq[Candidate] = ()
        self.latest = _NO_PLAN
        """The plan that is followed now; asks and candidates are those of whom it was made for."""
        self.is_trial = self.is_resting = False
        self.verify_cost: Cost = verify_cost
        """Seconds of the step under way without its drafting forwards, by the rows of those who
        were planned for."""
        self._draft_cost = draft_cost
        self._num_positions = num_positions
        self._trials = Trials(num_positions)
        self._stint = Stint()
        self._keeps_resting = False  # in the step under way
        self._num_kept = self._num_passed = 0
        """Steps that have kept resting, and that have passed so, since that was last counted."""
        self._passed_s = 0.0
        self._is_brief = False  # a stint that is not to be longer than planned
        self._is_chosen_one_by_one = False
        self._has_fixed = False
        self._weighed = (_NO_PLAN, _NO_PLAN)  # without and with drafts
        self._best_rate = 1.0  # of what is no trial
        self._debt_s = 0.0  # what was thought beyond its share
        self._may_think = True  # in the step under way
        self._lengths: Seq[int] = ()  # of the step under way
        self._num_committed = self._num_undrafted = 0
        self._alike_s: list[float] = []  # of steps of this shape, drafting forwards not counted
        self._shape = StepShape(0, 0)
        self._others = StepShape(0, 0)  # of other strategies, in the last step
        self._first = FirstDrafts()
        self._choices = Candidates(self.acceptance)

    def plan(self, ids: Seq[str], ask: AskOf) -> Seq[int]:
        """Tokens to draft for each; a step that rests asks next to nothing."""
        if self.keep_resting(ids):
            return self._lengths
        self._count_rests()
        self._num_committed = 0
        lengths = self._stint.go_on(ids, ask) if self._may_rest() else None
        self.is_resting = lengths is not None
        if lengths is None:
            self._think(list(map(ask, range(len(ids)))))
            lengths = self.latest.lengths
        self._lengths = lengths
        own = lengths
        if self._has_fixed:
            own = [n for i, n in enumerate(lengths) if ask(i).fixed_length is None]
        self.ledger.count(own, is_rest=self.is_resting, is_trial=self.is_trial)
        return lengths

    def keep_resting(self, ids: Seq[str]) -> bool:
        """Like `plan`, in less time, where nobody is drafted for as in the step before."""
        self._keeps_resting = not self._is_brief and self._stint.keep_resting(ids, self._may_think)
        if self._keeps_resting:
            self.is_resting, self._num_committed = True, 0
            self._num_kept += 1
        return self._keeps_resting

    def charge(self, seconds: float) -> None:
        """What a plan or a lesson took, as whoever asks has measured it: it is to be saved up."""
        most = _LONGEST_DEBT * THOUGHT_SHARE * self.latest.seconds
        self._debt_s = min(self._debt_s + seconds, most)

    def take(
        self, sequence_id: str, num_drafted: int, num_accepted: int, cut_off: Seq[float] = ()
    ) -> None:
        """Learn what became of one sequence's draft, or that it had none."""
        self._num_committed += 1 + num_accepted
        if num_drafted:
            self.acceptance.update(sequence_id, num_drafted, num_accepted, cut_off)
        else:
            self.acceptance.rest(sequence_id)

    def take_undrafted(self, num_sequences: int) -> None:
        """Nobody had a draft: like `take` for each of them, but left for the next plan."""
        self._num_committed += num_sequences
        self._num_undrafted += 1

    def count_committed(self, num_tokens: int) -> None:
        """Of a sequence whose draft was not the planner's."""
        self._num_committed += num_tokens

    def pass_rest(self, shape: tuple[int, int], seconds: float) -> bool:
        """Like `observe`, in less time, for a step that kept resting, and read and drafted nothing.

        False: there is something to do, so it is to be observed.
        """
        debt_s = self._debt_s - seconds * THOUGHT_SHARE
        is_usual = self._keeps_resting and shape == self._shape and self._stint.is_settled
        if debt_s <= 0.0 or not is_usual:
            return False
        self._debt_s, self._may_think = debt_s, False
        self._num_passed += 1
        self._passed_s += seconds
        self._alike_s.append(seconds)
        return True

    def observe(self, step: StepTime) -> bool:
        """A step has gone by; whether it was time to learn from it, and those like it before."""
        self._count_rests()
        self._trials.save(step.seconds)
        self._debt_s = max(self._debt_s - step.seconds * THOUGHT_SHARE, 0.0)
        self._may_think = not self._debt_s or (self._is_brief and self._stint.has_ended)
        is_settled = self._stint.is_settled
        if not step.num_prefill_rows:
            self.ledger.note(step.seconds, len(self._lengths), self._num_committed)
            if self.is_trial or not is_settled:
                worth_s = self.latest.committed / self._best_rate
                self._trials.pay(step.seconds, self.latest.seconds, worth_s)
        if self._stint.drafts and self._is_disappointing():
            self._stint.end()
            self._may_think = True
        if not is_settled:
            return False
        if step.num_prefill_rows or step.shape != self._shape:
            self._alike_s, self._shape = [], step.shape
        self._alike_s.append(step.seconds - step.drafting_s)
        if self._may_think:
            self._learn(step)
        return self._may_think

    def forget(self, sequence_id: str) -> None:
        self.acceptance.forget(sequence_id)
        self._stint.forget(sequence_id)

    def get_stats(self) -> dict[str, Any]:
        """Counts, and as gauges what was last expected without drafts and with the best ones."""
        self._count_rests()
        undrafted, drafted = self._weighed
        return {
            **self.ledger.to_dict(),
            "undrafted_step_s": undrafted.seconds if undrafted.lengths else 0.0,
            "undrafted_tokens_per_s": undrafted.rate,
            "drafted_step_s": drafted.seconds if drafted.lengths else 0.0,
            "drafted_tokens_per_s": drafted.rate,
        }

    def reset_stats(self) -> None:
        self._count_rests()
        self.ledger.reset()

    def _count_rests(self) -> None:
        """Make up for what was left out in steps that rested."""
        if self._num_kept:
            self.ledger.count_rests(self._num_kept, len(self._lengths))
        if self._num_passed:
            self.ledger.note_rests(self._num_passed, len(self._lengths), self._passed_s)
            self._trials.save(self._passed_s, self._num_passed)
        self._num_kept, self._num_passed, self._passed_s = 0, 0, 0.0

    def _may_rest(self) -> bool:
        return not (self._stint.has_ended and self._may_think)

    def _think(self, asks: Seq[Ask]) -> None:
        """Make a plan, and hold it for a while."""
        self.ledger.settle(self.latest, chosen_one_by_one=self._is_chosen_one_by_one)
        self.acceptance.rest_all(self._num_undrafted)
        self._num_undrafted = 0
        self.asks, self.candidates = asks, self._choices.of(asks)
        self.verify_cost = self._cost_by_rows()
        self.is_trial = self._is_brief = self._is_chosen_one_by_one = False
        self.latest, num_steps = self._choose()
        self._stint.begin(asks, self.latest.lengths, num_steps)
        self._has_fixed = any(ask.fixed_length is not None for ask in asks)
        if not self.is_trial:
            self._choices.note_choice(asks, self.latest.lengths)

    def _choose(self) -> tuple[Plan, int]:
        """The best plan, or a trial; and for how many steps."""
        choice = Choice(self.candidates, self.verify_cost, self._draft_cost)
        asked, single = choice.asked, choice.best_drafts()
        self._best_rate = max(asked.rate, 1e-9)
        if single is None:
            self._weighed = (asked, _NO_PLAN)
            return asked, _LONGEST_BY_LEAD
        if self._first.are_due:
            first = choice.even(self._num_positions)
            num_steps = self._first.num_steps(first, asked)
            if num_steps and self._worth_a_trial(choice, self._num_positions, asked):
                self._weighed, self._is_brief = (asked, single), True
                self._first.begin(first, asked, num_steps)
                return first, num_steps
        single, even = self._believed(single, asked), choice.even_like(single)
        drafted = single if single.rate > even.rate * _SURER else even
        self._weighed = (asked, drafted)
        # To try the best for one or two sequences would be cheap and teach little.
        best, other = (drafted, asked) if drafted.rate > asked.rate else (asked, even)
        self._best_rate = best.rate
        trial = self._trials.due(best, other, lambda n: self._worth_a_trial(choice, n, best))
        if trial is not None:
            self.is_trial = self._is_brief = True
            return trial, self._trials.num_steps(trial)
        self._is_chosen_one_by_one = best is single
        lead = 0.0 if best is drafted else 1.0 - drafted.rate / best.rate
        by_size = min(max(len(best.lengths) // _BY_SIZE, _SHORTEST), _LONGEST_BY_SIZE)
        return best, 1 + max(min(int(lead * _BY_LEAD), _LONGEST_BY_LEAD), by_size)

    def _believed(self, plan: Plan, asked: Plan) -> Plan:
        gain = (plan.committed - asked.committed) * self.ledger.credit.share
        return plan._replace(committed=asked.committed + gain)

    def _worth_a_trial(self, choice: Choice, length: int, best: Plan) -> Plan | None:
        """The same length for all, if it may be better than the best plan for all that is known."""
        plan = choice.even(length)
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

    def _is_disappointing(self) -> bool:
        """Whether drafts bring clearly less than none would, after 4, 8, 16, ... steps."""
        since = self.ledger.since
        count = since.num_steps
        if count < _FIRST_LOOK or count & (count - 1):
            return False
        return since.num_committed < self._weighed[0].rate * since.seconds * _DISAPPOINTING

    def _learn(self, step: StepTime) -> None:
        """From equal steps at once: half of them took no longer than what is learnt."""
        alike_s, self._alike_s = self._alike_s, []
        seconds = median(alike_s)
        slower = self.costs.update(step.shape, seconds, step.num_prefill_rows, len(alike_s))
        self._draft_cost.pass_step(1.0 if step.drafting_s else slower)
        num_asked = len(self._lengths)
        num_others = max(step.shape.num_sequences - num_asked, 0)
        num_rows = step.shape.num_rows - num_asked - sum(self._lengths)
        self._others = StepShape(num_others, max(num_rows, num_others) if num_others else 0)
