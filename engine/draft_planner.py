"""The step planner: how many tokens to draft for each sequence, from measured costs and luck.

It maximises expected committed tokens a second, (S + sum of survivals) / (C_verify + C_draft).
A survival a[r, j] is the probability that the first j + 1 draft tokens of sequence r are all
accepted. Under the shared-noise rule no choice made here can change any output.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import cache
from itertools import accumulate
from typing import NamedTuple

_MAX_WEIGHED = 96
"""Plans of one step that are weighed against each other; more would cost more than they bring."""
_DEAREST_BLOCK = 100.0  # rows


Cost = Callable[[float], float]
"""Seconds of a forward by its size."""


class CostCurve:
    """Seconds of a forward over its size as they were timed: piecewise linear, never falling."""

    def __init__(self, points: Seq[tuple[float, float]]) -> None:
        """`points` are (size, seconds), sizes ascending, at least two of them."""
        self._sizes = [float(size) for size, _ in points]
        self._seconds = list(accumulate((seconds for _, seconds in points), max))

    def __call__(self, size: float) -> float:
        left = min(max(bisect_right(self._sizes, size) - 1, 0), len(self._sizes) - 2)
        width = self._sizes[left + 1] - self._sizes[left]
        low, high = self._seconds[left], self._seconds[left + 1]
        return max(low + (high - low) * max((size - self._sizes[left]) / width, 0.0), 1e-9)


class Candidate(NamedTuple):
    """A sequence that may be drafted for."""

    survivals: Seq[float]  # one for each position that may be drafted
    fixed_length: int | None  # what the client asked for, instead of the planner's choice
    needs_block: bool = True  # False: the draft is there already, and costs no forward


class Plan(NamedTuple):
    """Draft lengths for the candidates of a step, and what is expected of them."""

    lengths: Seq[int]
    committed: float  # tokens
    seconds: float

    @property
    def rate(self) -> float:
        """Committed tokens a second."""
        return self.committed / self.seconds

    @property
    def drafts(self) -> bool:
        return any(self.lengths)


class Choice:
    """What may be drafted in one step, and what any of it would give and cost."""

    def __init__(self, candidates: Seq[Candidate], verify_cost: Cost, draft_cost: Cost) -> None:
        self.candidates = candidates
        self.verify_cost = verify_cost
        self.draft_cost = cache(draft_cost)
        self._gains = [list(accumulate(c.survivals, initial=0.0)) for c in candidates]
        self.asked = self.weigh([c.fixed_length or 0 for c in candidates])
        """Those alone are drafted for whose length is fixed."""

    def weigh(self, lengths: Seq[int]) -> Plan:
        """What these lengths can be expected to give and to cost."""
        gained = sum(
            gains[min(n, len(gains) - 1)] for n, gains in zip(lengths, self._gains, strict=True)
        )
        num_blocks = sum(
            n > 0 and c.needs_block for n, c in zip(lengths, self.candidates, strict=True)
        )
        seconds = self.verify_cost(len(lengths) + sum(lengths))
        seconds += self.draft_cost(num_blocks) if num_blocks else 0.0
        return Plan(lengths, len(lengths) + gained, seconds)

    def even(self, length: int) -> Plan:
        """The same length for all, where it is free and there is room."""
        return self.weigh(
            [
                min(length, len(c.survivals)) if c.fixed_length is None else c.fixed_length
                for c in self.candidates
            ]
        )

    def even_like(self, plan: Plan) -> Plan:
        """The best of the lengths about the mean of a plan, if all had the same."""
        if len(plan.lengths) == 1:
            return plan
        drafted = [length for length in plan.lengths if length]
        usual = round(sum(drafted) / len(drafted))
        lengths = [n for n in (usual - 1, usual, usual + 1) if n > 0]
        return max(map(self.even, lengths), key=lambda plan: plan.rate)

    def best_drafts(self) -> Plan | None:
        """The best plan with at least one draft of the planner's choice; None where none may be.

        Positions are taken in falling order of what they bring for their price. To draft for one
        more sequence costs a block besides; so that is tried at two prices of a block: none, which
        spreads rows over all sequences, and what it costs on average, where the first positions of
        a sequence are taken together, as many as make the best bargain. Every prefix of both orders
        is weighed, in a large batch every few positions.
        """
        prices = [0.0, self._block_price()] if len(self.candidates) > 1 else [0.0]
        orders = [_bargains(self.candidates, price) for price in prices]
        plans = [self._best_prefix(order) for order in orders if order]
        return max(plans, key=lambda plan: plan.rate, default=None)

    def _best_prefix(self, order: Seq[tuple[float, int, int]]) -> Plan:
        lengths = list(self.asked.lengths)
        num_rows = len(lengths) + sum(lengths)
        num_blocks = sum(
            n > 0 and c.needs_block for n, c in zip(lengths, self.candidates, strict=True)
        )
        committed = self.asked.committed
        stride = 1 + len(order) // _MAX_WEIGHED
        best: tuple[float, int, float, float] = (0.0, 0, 0.0, 1.0)  # rate, count, tokens, seconds
        for count, (_, r, position) in enumerate(order, start=1):
            committed += self.candidates[r].survivals[position]
            num_blocks += not position
            if count % stride and count != len(order):
                continue
            seconds = self.verify_cost(num_rows + count) + self.draft_cost(num_blocks)
            if committed / seconds > best[0]:
                best = (committed / seconds, count, committed, seconds)
        for _, r, _ in order[: best[1]]:
            lengths[r] += 1
        return Plan(lengths, best[2], best[3])

    def _block_price(self) -> float:
        """What a drafted block costs, in rows of the verifier."""
        count = len(self.candidates)
        span = count * max((len(c.survivals) for c in self.candidates), default=0) / 2
        row = (self.verify_cost(count + span) - self.verify_cost(count)) / max(span, 1.0)
        block = (self.draft_cost(count) - self.draft_cost(1)) / max(count - 1, 1)
        return min(max(block, 0.0) / max(row, 1e-9), _DEAREST_BLOCK)


def plan_lengths(candidates: Seq[Candidate], verify_cost: Cost, draft_cost: Cost) -> list[int]:
    """Draft lengths that maximise expected committed tokens a second over the whole batch."""
    if not candidates:
        return []
    choice = Choice(candidates, verify_cost, draft_cost)
    drafted = choice.best_drafts()
    best = drafted if drafted and drafted.rate > choice.asked.rate else choice.asked
    return list(best.lengths)


def _bargains(candidates: Seq[Candidate], block_price: float) -> list[tuple[float, int, int]]:
    """(minus tokens for the price of a row, sequence, position), the best first.

    For each sequence in the order of its positions.
    """
    free = [(r, c) for r, c in enumerate(candidates) if c.fixed_length is None and c.survivals]
    if not block_price:
        return sorted((-s, r, j) for r, c in free for j, s in enumerate(c.survivals))
    order: list[tuple[float, int, int]] = []
    for r, candidate in free:
        gained, together, bargain = 0.0, 0, 0.0
        for j, survival in enumerate(candidate.survivals, start=1):
            gained += survival
            if gained > bargain * (block_price + j):
                together, bargain = j, gained / (block_price + j)
        order += [(-bargain, r, j) for j in range(together)]
        order += [
            (-min(survival, bargain), r, j)
            for j, survival in enumerate(candidate.survivals[together:], start=together)
        ]
    order.sort()
    return order
