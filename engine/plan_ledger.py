"""What was planned, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from engine.acceptance_model import Credit
from engine.base import BaseStats
from engine.draft_planner import Plan


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


@dataclass(slots=True)
class Since:
    """What has come of a plan so far; steps that read prompts are left out."""

    num_steps: int = 0
    seconds: float = 0.0
    num_asked: int = 0  # sequences, one a step
    num_committed: int = 0  # tokens


class Ledger:
    """Counts decisions, and compares each plan with what came of it once the next one is due."""

    def __init__(self, num_positions: int) -> None:
        self.stats = PlannerStats()
        self.credit = Credit()
        self.since = Since()
        self._length_counts = [0] * (num_positions + 1)

    def count(self, lengths: Seq[int], *, is_rest: bool, is_trial: bool) -> None:
        """A step that begins, with the lengths that were the planner's choice."""
        self.stats.num_plans += 1
        self.stats.num_rests += is_rest
        self.stats.num_trials += is_trial
        if not any(lengths):
            self._length_counts[0] += len(lengths)
            return
        self.stats.num_drafting_plans += 1
        for length in lengths:
            self._length_counts[length] += 1

    def count_rests(self, num_steps: int, num_asked: int) -> None:
        """Steps that rested, each with so many sequences and no draft."""
        self.stats.num_plans += num_steps
        self.stats.num_rests += num_steps
        self._length_counts[0] += num_steps * num_asked

    def note_rests(self, num_steps: int, num_asked: int, seconds: float) -> None:
        """Steps without drafts that have ended, of so many sequences each; seconds of them all."""
        since = self.since
        since.num_steps += num_steps
        since.seconds += seconds
        since.num_asked += num_steps * num_asked
        since.num_committed += num_steps * num_asked

    def note(self, seconds: float, num_asked: int, num_committed: int) -> None:
        """A step that has ended."""
        since = self.since
        since.num_steps += 1
        since.seconds += seconds
        since.num_asked += num_asked
        since.num_committed += num_committed

    def settle(self, plan: Plan, *, chosen_one_by_one: bool) -> None:
        """Nobody follows this plan any more."""
        since, self.since = self.since, Since()
        num_planned = len(plan.lengths)
        if not (since.num_asked and num_planned):
            return
        share = since.num_asked / num_planned
        if chosen_one_by_one:
            promised = (plan.committed - num_planned) * share / self.credit.share
            self.credit.update(promised, since.num_committed - since.num_asked)
        self.stats.num_measured_steps += since.num_steps
        self.stats.sum_expected_s += plan.seconds * since.num_steps
        self.stats.sum_measured_s += since.seconds
        self.stats.sum_expected_tokens += plan.committed * share
        self.stats.sum_committed_tokens += since.num_committed

    def to_dict(self) -> dict[str, Any]:
        counts = {f"num_length_{n}": count for n, count in enumerate(self._length_counts)}
        return {**self.stats.to_dict(), **counts}

    def reset(self) -> None:
        """Of the counts; what was learnt stays."""
        self.stats.reset()
        self._length_counts = [0] * len(self._length_counts)
