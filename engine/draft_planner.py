"""The step planner: how many tokens to draft for each sequence, from measured costs and luck.

It maximises expected committed tokens a second, (S + sum of survivals) / (C_verify + C_draft).
A survival a[r, j] is the probability that the first j + 1 draft tokens of sequence r are all
accepted. Under the shared-noise rule no choice made here can change any output.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Sequence as Seq
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


def weigh(
    candidates: Seq[Candidate], lengths: Seq[int], verify_cost: Cost, draft_cost: Cost
) -> Plan:
    """What these lengths can be expected to give and to cost."""
    committed, num_rows, num_blocks = float(len(candidates)), len(candidates), 0
    for candidate, length in zip(candidates, lengths, strict=True):
        if length:
            committed += sum(candidate.survivals[:length])
            num_rows += length
            num_blocks += candidate.needs_block
    seconds = verify_cost(num_rows) + (draft_cost(num_blocks) if num_blocks else 0.0)
    return Plan(lengths, committed, seconds)


def plan_lengths(candidates: Seq[Candidate], verify_cost: Cost, draft_cost: Cost) -> list[int]:
    """Draft lengths that maximise expected committed tokens a second over the whole batch."""
    if not candidates:
        return []
    asked = weigh(candidates, asked_lengths(candidates), verify_cost, draft_cost)
    drafted = plan_drafts(candidates, verify_cost, draft_cost)
    return list(drafted.lengths if drafted and drafted.rate > asked.rate else asked.lengths)


def asked_lengths(candidates: Seq[Candidate]) -> list[int]:
    """Of a step in which only those are drafted for whose length is fixed."""
    return [0 if c.fixed_length is None else c.fixed_length for c in candidates]


def plan_drafts(candidates: Seq[Candidate], verify_cost: Cost, draft_cost: Cost) -> Plan | None:
    """The best plan with at least one draft of the planner's choice; None where none may be.

    Positions are taken in falling order of what they bring for their price. To draft for one more
    sequence costs a block besides; so that is tried at two prices of a block: none, which spreads
    rows over all sequences, and what it costs on average, where the first positions of a sequence
    are taken together, as many as make the best bargain. Every prefix of both orders is weighed, in
    a large batch every few positions.
    """
    base = weigh(candidates, asked_lengths(candidates), verify_cost, draft_cost)
    prices = [0.0]
    if len(candidates) > 1:
        prices.append(_block_price(candidates, verify_cost, draft_cost))
    plans = [
        _best_prefix(candidates, base, order, verify_cost, draft_cost)
        for order in (_bargains(candidates, price) for price in prices)
        if order
    ]
    return max(plans, key=lambda plan: plan.rate, default=None)


def _best_prefix(
    candidates: Seq[Candidate],
    base: Plan,
    order: Seq[tuple[float, int, int]],
    verify_cost: Cost,
    draft_cost: Cost,
) -> Plan:
    lengths = list(base.lengths)
    num_rows = len(candidates) + sum(lengths)
    num_blocks = sum(n > 0 and c.needs_block for n, c in zip(lengths, candidates, strict=True))
    committed, drafting_s = base.committed, 0.0
    stride = 1 + len(order) // _MAX_WEIGHED
    best: tuple[float, int, float, float] = (0.0, 0, 0.0, 1.0)  # rate, count, tokens, seconds
    for count, (_, r, position) in enumerate(order, start=1):
        committed += candidates[r].survivals[position]
        if not position:
            num_blocks += 1
            drafting_s = 0.0
        if count % stride and count != len(order):
            continue
        drafting_s = drafting_s or draft_cost(num_blocks)
        seconds = verify_cost(num_rows + count) + drafting_s
        if committed / seconds > best[0]:
            best = (committed / seconds, count, committed, seconds)
    for _, r, _ in order[: best[1]]:
        lengths[r] += 1
    return Plan(lengths, best[2], best[3])


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


def _block_price(candidates: Seq[Candidate], verify_cost: Cost, draft_cost: Cost) -> float:
    """What a drafted block costs, in rows of the verifier."""
    count = len(candidates)
    span = count * max((len(c.survivals) for c in candidates), default=0) / 2
    row = (verify_cost(count + span) - verify_cost(count)) / max(span, 1.0)
    block = (draft_cost(count) - draft_cost(1)) / max(count - 1, 1)
    return min(max(block, 0.0) / max(row, 1e-9), _DEAREST_BLOCK)
