"""The step planner: how many tokens to draft for each sequence, from measured costs and luck.

It maximises expected committed tokens a second, (S + sum of survivals) / (C_verify + C_draft).
A survival a[r, j] is the probability that the first j + 1 draft tokens of sequence r are all
accepted. Both costs start from forwards timed at start-up and follow the measured steps from there.
Under the shared-noise rule no choice made here can change any output.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Sequence as Seq
from itertools import accumulate
from operator import mul
from typing import NamedTuple

_LOCAL_RATE = 0.1
_GLOBAL_RATE = 0.02
_OUTLIER = 4.0
_LUCK_PRIOR = 4.0  # tokens' worth of belief that a sequence is like the others
_LUCK_REST = 0.8


Cost = Callable[[float], float]
"""Seconds of a forward by its size."""


class CostCurve:
    """Seconds of a forward over its size: piecewise linear, and slowly pulled to what is seen."""

    def __init__(self, points: Seq[tuple[float, float]]) -> None:
        """`points` are (size, seconds), sizes ascending, at least two of them."""
        self._sizes = [float(size) for size, _ in points]
        self._seconds = list(accumulate((seconds for _, seconds in points), max))

    def __call__(self, size: float) -> float:
        left, weight = self._locate(size)
        low, high = self._seconds[left], self._seconds[left + 1]
        return max(low + (high - low) * weight, 1e-9)

    def update(self, size: float, seconds: float) -> None:
        """Pull the curve: all of it a little (a busy machine), the neighbours of `size` more."""
        expected = self(size)
        seen = min(seconds, expected * _OUTLIER)
        scale = (seen / expected) ** _GLOBAL_RATE
        self._seconds = [value * scale for value in self._seconds]
        left, weight = self._locate(size)
        share = min(max(weight, 0.0), 1.0)
        error = (seen - self(size)) * _LOCAL_RATE
        self._seconds[left] += error * (1.0 - share)
        self._seconds[left + 1] += error * share
        self._keep_rising(left + (share >= 0.5))

    def _keep_rising(self, index: int) -> None:
        """Let no size cost more than a larger one; of a pair at odds, the value at `index` holds.

        Beyond its last point a curve that falls would fall to nothing, and all would be drafted.
        """
        values = self._seconds
        for i in range(index, 0, -1):
            values[i - 1] = min(values[i - 1], values[i])
        for i in range(index + 1, len(values)):
            values[i] = max(values[i], values[i - 1])

    def _locate(self, size: float) -> tuple[int, float]:
        """Index of the segment that holds `size`, and how far into it that lies (may pass 1)."""
        left = min(max(bisect_right(self._sizes, size) - 1, 0), len(self._sizes) - 2)
        width = self._sizes[left + 1] - self._sizes[left]
        return left, max((size - self._sizes[left]) / width, 0.0)


class AcceptanceModel:
    """Probability that draft position j is accepted, given that all before it were.

    One estimate a position over all sequences, and one factor a sequence: some texts are simply
    easier than others. Old evidence fades, so a change of traffic is followed.
    """

    def __init__(self, num_positions: int, *, prior: float = 0.6, fade: float = 0.998) -> None:
        self._tried = [4.0] * num_positions
        self._accepted = [4.0 * prior] * num_positions
        self._fade = fade
        self._luck: dict[str, tuple[float, float]] = {}  # accepted, expected to be accepted

    def conditional(self, position: int) -> float:
        return self._accepted[position] / self._tried[position]

    def chances(self, sequence_id: str, length: int) -> list[float]:
        """`conditional` of each position, by the luck of one sequence; each in [0, 1)."""
        accepted, expected = self._luck.get(sequence_id, (0.0, 0.0))
        factor = (accepted + _LUCK_PRIOR) / (expected + _LUCK_PRIOR)
        return [min(self.conditional(j) * factor, 0.98) for j in range(length)]

    def survivals(self, sequence_id: str, length: int) -> list[float]:
        """a[0], ..., a[length - 1] of one sequence: falling, each in [0, 1)."""
        return list(accumulate(self.chances(sequence_id, length), mul))

    def update(
        self, sequence_id: str, num_drafted: int, num_accepted: int, cut_off: Seq[float] = ()
    ) -> None:
        """Learn from one verify step.

        `cut_off` are the chances of the tokens that were drafted after these but not verified.
        They count as far as they would have been tried: a draft is cut where it looks bad, and
        without them the deep positions would be judged by the good drafts alone.
        """
        fates = [1.0] * num_accepted + [0.0] * (num_drafted - num_accepted)
        tried, accepted, expected = 1.0, 0.0, 0.0
        for j, chance in enumerate((*fates, *cut_off)):
            expected += tried * self.conditional(j)
            self._tried[j] = self._tried[j] * self._fade**tried + tried
            self._accepted[j] = self._accepted[j] * self._fade**tried + tried * chance
            tried *= chance
            accepted += tried
        old_accepted, old_expected = self._luck.get(sequence_id, (0.0, 0.0))
        self._luck[sequence_id] = (
            old_accepted * 0.9 + accepted,
            old_expected * 0.9 + expected,
        )

    def rest(self, sequence_id: str) -> None:
        """A step without a draft: bad luck fades, or a sequence would never be tried again."""
        if sequence_id in self._luck:
            accepted, expected = self._luck[sequence_id]
            self._luck[sequence_id] = (accepted * _LUCK_REST, expected * _LUCK_REST)

    def forget(self, sequence_id: str) -> None:
        self._luck.pop(sequence_id, None)


class Candidate(NamedTuple):
    """A sequence that may be drafted for."""

    survivals: Seq[float]  # one for each position that may be drafted
    fixed_length: int | None  # what the client asked for, instead of the planner's choice
    needs_block: bool = True  # False: the draft is there already, and costs no forward


def plan_lengths(candidates: Seq[Candidate], verify_cost: Cost, draft_cost: Cost) -> list[int]:
    """Draft lengths that maximise expected committed tokens a second over the whole batch.

    Positions are taken in falling order of survival, which for each sequence is its own order, and
    every prefix of that order is weighed, no drafting at all included.
    """
    lengths = [0 if c.fixed_length is None else c.fixed_length for c in candidates]
    committed = len(candidates) + sum(
        sum(c.survivals[:length]) for c, length in zip(candidates, lengths, strict=True)
    )
    num_rows = len(candidates) + sum(lengths)
    num_blocks = sum(
        length > 0 and c.needs_block for c, length in zip(candidates, lengths, strict=True)
    )
    best_rate = committed / (verify_cost(num_rows) + _draft(draft_cost, num_blocks))
    best_count = 0
    order = sorted(
        (
            (-survival, r)
            for r, c in enumerate(candidates)
            if c.fixed_length is None
            for survival in c.survivals
        ),
    )
    drafted: set[int] = set()
    for count, (negative, r) in enumerate(order, start=1):
        committed -= negative
        drafted.add(r)
        cost = verify_cost(num_rows + count) + _draft(draft_cost, num_blocks + len(drafted))
        if committed / cost > best_rate:
            best_rate, best_count = committed / cost, count
    for _, r in order[:best_count]:
        lengths[r] += 1
    return lengths


def _draft(cost: Cost, num_blocks: int) -> float:
    return cost(num_blocks) if num_blocks else 0.0
