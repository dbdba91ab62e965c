"""When to do what does not seem best, so that it is known how good it would be by now."""

from __future__ import annotations

from collections.abc import Callable

from engine.draft_planner import Plan

SHARE = 0.01
"""Of the time, that may be lost with trials."""
_GAP = 4
"""Steps from one trial to the next."""
_FIRST_DRAFTS, _FIRST_STEPS, _FIRST_LOSS = 48, 4, 8.0
"""The first drafts: how many, how many steps of them without a thought, and what they may lose in
all, in steps without drafts."""
_STEPS = {True: 3, False: 8}
"""How long a trial is, by whether it drafts: the first steps are no measure."""
_LONGEST_WAIT = 4096
"""Steps after which a trial is made whatever it costs: what is expected of it may be wrong."""
_WELCOME = 8
"""Steps' worth of time that may be lost to get to know batches of a new size."""
_DEAREST = 3.0
"""Times what it was expected to take: what a step took beyond that is not a trial's fault."""


class Trials:
    """Two kinds in turn: the opposite (drafts, or none), and one and the same length for all.

    A trial waits until the time that it is expected to lose has been saved up. So near the
    break-even point, where it is worth most, it costs next to nothing, and far from it it is rare.
    What it has truly lost is paid, with the steps after it that it has made slower.
    """

    def __init__(self, num_positions: int) -> None:
        self._num_positions = num_positions
        self._saved_s = [0.0, 0.0]
        self._known_sizes: set[int] = set()
        self._num_steps = 0  # since a trial was thought of
        self._is_even = False
        self._turn = 0  # of the second kind

    def save(self, seconds: float, num_steps: int = 1) -> None:
        """Steps of so many seconds in all have gone by."""
        self._num_steps += num_steps
        self._saved_s[0] += seconds * SHARE / 2
        self._saved_s[1] += seconds * SHARE / 2

    def pay(self, seconds: float, expected_s: float, worth_s: float) -> None:
        """For a step that was part of a trial, or suffered from one.

        `worth_s` is the time in which as many tokens would have been expected otherwise.
        """
        self._saved_s[self._is_even] -= min(seconds, _DEAREST * expected_s) - worth_s

    def due(self, best: Plan, other: Plan, even: Callable[[int], Plan | None]) -> Plan | None:
        """The trial whose turn it is, if it can be afforded; `even` may refuse a length."""
        size = len(best.lengths).bit_length()
        if size not in self._known_sizes:
            self._known_sizes.add(size)
            for kind in (0, 1):
                self._saved_s[kind] += _WELCOME * best.seconds / 2
        if self._num_steps < _GAP:
            return None
        self._num_steps = 0
        self._is_even = not self._is_even
        if self._saved_s[self._is_even] < 0.0:
            return None
        plan = even(self._length(best)) if self._is_even else other
        if plan is not None and not self._can_pay(best, plan):
            return None
        self._turn += self._is_even
        return plan

    def num_steps(self, plan: Plan) -> int:
        """Of a trial."""
        return _STEPS[plan.drafts]

    def _length(self, best: Plan) -> int:
        """All in turn; every other time one of those around what is drafted now."""
        rounds, is_near = divmod(self._turn, 2)
        if not is_near:
            return 1 + rounds % self._num_positions
        usual = round(sum(best.lengths) / len(best.lengths))
        return min(max(usual + rounds % 3 - 1, 1), self._num_positions)

    def _can_pay(self, best: Plan, plan: Plan) -> bool:
        lost = self.num_steps(plan) * max(0.0, plan.seconds - plan.committed / best.rate)
        return self._saved_s[self._is_even] >= min(lost, best.seconds * _LONGEST_WAIT * SHARE / 2)


class FirstDrafts:
    """Full drafts before anything is decided, for of what becomes of them nothing is known."""

    def __init__(self) -> None:
        self._num_left = _FIRST_DRAFTS
        self._may_lose = _FIRST_LOSS

    @property
    def are_due(self) -> bool:
        return self._num_left > 0 and self._may_lose > 0.0

    def num_steps(self, full: Plan, asked: Plan) -> int:
        """How many steps of full drafts can be afforded now."""
        return min(int(self._may_lose / max(_lost(full, asked), 1e-9)), _FIRST_STEPS)

    def begin(self, full: Plan, asked: Plan, num_steps: int) -> None:
        """So many steps of these drafts are to be made, which are expected to lose that much."""
        self._may_lose -= num_steps * _lost(full, asked)
        self._num_left -= num_steps * sum(length > 0 for length in full.lengths)


def _lost(full: Plan, asked: Plan) -> float:
    """By a step, in steps without drafts."""
    return max(full.seconds / asked.seconds - full.committed / asked.committed, 0.0)
