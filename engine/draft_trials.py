"""When to do what does not seem best, so that it is known how good it would be by now."""

from __future__ import annotations

from collections.abc import Callable

from engine.draft_planner import Plan

SHARE = 0.01
"""Of the time, that may be lost with trials, by what is expected of them."""
_GAP = 4
"""Steps from one trial to the next."""
_LONGEST_WAIT = 4096
"""Steps after which a trial is made whatever it costs: what is expected of it may be wrong."""
_WELCOME = 6
"""Steps' worth of time that may be lost to get to know batches of a new size."""


class Trials:
    """Two kinds in turn: the opposite (drafts, or none), and one and the same length for all.

    A trial waits until the time that it is expected to lose has been saved up. So near the
    break-even point, where it is worth most, it costs next to nothing, and far from it it is rare.
    """

    def __init__(self, num_positions: int) -> None:
        self._num_positions = num_positions
        self._saved_s = [0.0, 0.0]
        self._known_sizes: set[int] = set()
        self._num_steps = 0  # since a trial was thought of
        self._is_even = False
        self._turn = 0  # of the second kind

    def save(self, seconds: float) -> None:
        """A step of so many seconds has gone by."""
        self._num_steps += 1
        for kind in (False, True):
            self._saved_s[kind] += seconds * SHARE / 2

    def due(self, best: Plan, other: Plan, even: Callable[[int], Plan | None]) -> Plan | None:
        """The trial whose turn it is, if it can be afforded; `even` may refuse a length."""
        size = len(best.lengths).bit_length()
        if size not in self._known_sizes:
            self._known_sizes.add(size)
            self.save(_WELCOME * best.seconds / SHARE)
        if self._num_steps < _GAP:
            return None
        self._num_steps = 0
        self._is_even = not self._is_even
        plan = even(self._length(best)) if self._is_even else other
        if plan is not None and not self._pay(best, plan):
            return None
        self._turn += self._is_even
        return plan

    def _length(self, best: Plan) -> int:
        """All in turn; every other time one of those around what is drafted now."""
        rounds, is_near = divmod(self._turn, 2)
        if not is_near:
            return 1 + rounds % self._num_positions
        usual = round(sum(best.lengths) / len(best.lengths))
        return min(max(usual + rounds % 3 - 1, 1), self._num_positions)

    def _pay(self, best: Plan, plan: Plan) -> bool:
        most = best.seconds * _LONGEST_WAIT * SHARE / 2
        lost = min(max(0.0, plan.seconds - plan.committed / best.rate), most)
        saved = min(self._saved_s[self._is_even], most)
        can_pay = saved >= lost
        self._saved_s[self._is_even] = saved - lost if can_pay else saved
        return can_pay
