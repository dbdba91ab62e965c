"""What steps and drafting forwards cost, learnt while the engine runs.

The logarithm of the seconds is what the forwards timed at start-up say, plus what was learnt since:
of the machine (its speed now), of the number of sequences, of the rows that each has. Each term is
a random walk, followed by a Kalman filter that leaves correlations out: an error goes to the terms
in proportion to how little is known of them. So a busy neighbour moves all costs together, what is
special to a kind of step is learnt from that kind alone, and what was not seen for long is believed
at once when it is seen again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from math import exp, log, log2
from typing import NamedTuple

Cost = Callable[[float], float]
"""Seconds by size."""

_WIDTHS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0)
"""Rows a sequence between which is interpolated."""
_SIZES = range(12)
"""Logarithms, to base 2, of the numbers of sequences or blocks between which is interpolated."""
_SPEED, _SIZE, _WIDTH, _KIND = 0.6, 0.6, 0.5, 0.15
"""How far start-up may be wrong: standard deviations of logarithms."""
_SPEED_DRIFT, _DRIFT = 0.01, 0.001
"""How far a term walks in one step."""
_PASSES, _TIMED, _TIMED_SPEED = 4, 0.105, 0.25
"""How often batches timed at start-up are learnt from, and how far off the terms may be after it:
these were forwards alone, and all that a step does besides goes to the speed at first."""
_NOISE, _NOISE_RATE = 0.15, 0.02
"""The first guess of how much equal steps differ, and the weight of what the newest says of it."""
_CLIP, _LEAST_CLIP = 4.0, 0.1
"""An error is believed up to so many standard deviations of the noise, taken for at least 0.1."""


class StepShape(NamedTuple):
    """What the verifier had to do in one step."""

    num_sequences: int
    num_rows: int  # of sequences that decode


class _Term:
    """One learnt part of the logarithm: its value and how little is known of it."""

    __slots__ = ("_drift", "_most", "_seen_at", "_variance", "value")

    def __init__(self, deviation: float, drift: float) -> None:
        self.value = 0.0
        self._variance = self._most = deviation * deviation
        self._drift = drift * drift
        self._seen_at = 0

    def variance(self, now: int) -> float:
        return min(self._most, self._variance + (now - self._seen_at) * self._drift)

    def doubt(self, deviation: float) -> None:
        """Start anew with this value, known no better than that."""
        variance = self.variance(self._seen_at)
        self._variance, self._seen_at = min(self._most, max(variance, deviation**2)), 0

    def move(self, step: float, variance: float, now: int) -> None:
        self.value += step
        self._variance, self._seen_at = variance, now


Terms = list[tuple[_Term, float]]
"""With their weights."""


class _Filter:
    """Lays errors to the account of terms; knows how much equal steps differ anyway."""

    def __init__(self) -> None:
        self.now = 0
        self._noise = _NOISE * _NOISE

    def learn(self, terms: Terms, error: float, num_steps: int = 1) -> None:
        """`error` is the logarithm of what was seen over what was foretold.

        Of so many equal steps, in the mean.
        """
        noise = self._noise / num_steps
        known = [(term, weight, term.variance(self.now)) for term, weight in terms]
        total = noise + sum(weight * weight * variance for _, weight, variance in known)
        limit = _CLIP * max(self._noise**0.5, _LEAST_CLIP)
        # Too far off to tell a wrong cost from an accident: it moves the cost, but proves nothing.
        proves = abs(error) <= limit
        error = min(max(error, -limit), limit)
        for term, weight, variance in known:
            gain = weight * variance / total
            left = variance * (1.0 - gain * weight) if proves else variance
            term.move(gain * error, left, self.now)
        surprise = max(error * error * self._noise / total, 1e-5)  # of one step
        self._noise += (surprise - self._noise) * _NOISE_RATE


class StepCosts:
    """Seconds of a step, drafting forwards not counted, by `StepShape`."""

    def __init__(self, verify: Cost, timed: Seq[tuple[StepShape, float]] = ()) -> None:
        """`verify` says what a forward of the verifier over so many rows was timed at.

        `timed` are batches of such shapes and their seconds, as far as these were timed.
        """
        self._verify = verify
        self._filter = _Filter()
        self._speed = _Term(_SPEED, _SPEED_DRIFT)
        self._reading = _Term(_SIZE, _DRIFT)
        self._sizes = [_Term(_SIZE, _DRIFT) for _ in _SIZES]
        self._widths = [[_Term(_WIDTH, _DRIFT) for _ in _SIZES] for _ in _SIZES]
        self._kinds = [[_Term(_KIND, _DRIFT) for _ in _WIDTHS] for _ in _SIZES]
        self._by_width: dict[int, list[tuple[float, float, Terms]]] = {}
        if timed:
            self._begin(timed)

    def __call__(self, shape: StepShape) -> float:
        return self._verify(shape.num_rows) * exp(_sum(self._terms(shape)))

    def doubt(self, shape: StepShape, other: StepShape) -> float:
        """Standard deviation of the logarithm of what one kind of step costs against another."""
        weights: dict[_Term, float] = {}
        for sign, terms in ((1.0, self._terms(shape)), (-1.0, self._terms(other))):
            for term, weight in terms:
                weights[term] = weights.get(term, 0.0) + sign * weight
        now = self._filter.now
        variance = sum(weight * weight * term.variance(now) for term, weight in weights.items())
        return float(variance**0.5)

    def by_rows(self, num_sequences: int, most: float = _WIDTHS[-1]) -> Cost:
        """Seconds by rows for a number of sequences: quick to ask often, stale at the next step.

        `most` rows a sequence are of interest.
        """
        if num_sequences not in self._by_width:
            self._by_width[num_sequences] = self._knots(num_sequences)
        common = self._speed.value
        rows, seconds = [], []
        knots = self._by_width[num_sequences]
        for num_rows, timed_s, terms in knots[: max(2, bisect_right(_WIDTHS, most) + 1)]:
            learnt = common
            for term, weight in terms:
                learnt += term.value * weight
            rows.append(num_rows)
            seconds.append(timed_s * exp(learnt))
        last = len(rows) - 2

        def cost(num_rows: float) -> float:
            left = min(max(bisect_right(rows, num_rows) - 1, 0), last)
            share = (num_rows - rows[left]) / (rows[left + 1] - rows[left])
            return max(seconds[left] + (seconds[left + 1] - seconds[left]) * share, 1e-9)

        return cost

    def _knots(self, num_sequences: int) -> list[tuple[float, float, Terms]]:
        """By rows a sequence: all rows, what start-up says of them, and the terms but the speed."""
        knots = []
        for index, width in enumerate(_WIDTHS):
            terms: Terms = []
            for i, share in _shares(num_sequences):
                terms += [(self._sizes[i], share), (self._kinds[i][index], share)]
                terms += [(self._widths[i][j], share * part) for j, part in _shares(width)]
            knots.append((num_sequences * width, self._verify(num_sequences * width), terms))
        return knots

    def update(
        self, shape: StepShape, seconds: float, num_prefill_rows: int = 0, num_steps: int = 1
    ) -> float:
        """Learn from equal steps; returns the factor by which the machine seems slower than before.

        `seconds` is what one of them took.
        """
        self._filter.now += 1
        before = self._speed.value
        if shape.num_sequences:
            terms, expected = self._terms(shape), self(shape)
            if num_prefill_rows:
                reading_s = self._reading_s(shape, num_prefill_rows)
                share = expected / (expected + reading_s)
                terms = [(term, weight * share) for term, weight in terms]
                terms += [(self._speed, 1.0 - share), (self._reading, 1.0 - share)]
                expected += reading_s
            self._filter.learn(terms, log(max(seconds, 1e-9) / expected), num_steps)
        return exp(self._speed.value - before)

    def _begin(self, timed: Seq[tuple[StepShape, float]]) -> None:
        """Learn from what start-up timed, and doubt it: steps are more than forwards."""
        for _ in range(_PASSES):
            for shape, seconds in timed:
                self.update(shape, seconds)
        self._filter = _Filter()
        self._speed.doubt(_TIMED_SPEED)
        for term in self._parts():
            term.doubt(_TIMED)

    def _parts(self) -> Iterator[_Term]:
        """All terms but the speed."""
        yield self._reading
        yield from self._sizes
        for terms in (*self._widths, *self._kinds):
            yield from terms

    def _reading_s(self, shape: StepShape, num_prefill_rows: int) -> float:
        """What a step takes longer for the prompts that are read in it."""
        rows = shape.num_rows
        more = self._verify(rows + num_prefill_rows) - self._verify(rows)
        return max(more, 0.0) * exp(self._speed.value + self._reading.value)

    def _terms(self, shape: StepShape) -> Terms:
        """Those that speak of such a step."""
        width = shape.num_rows / shape.num_sequences
        left = min(max(bisect_right(_WIDTHS, width) - 1, 0), len(_WIDTHS) - 2)
        right = min((width - _WIDTHS[left]) / (_WIDTHS[left + 1] - _WIDTHS[left]), 1.0)
        coarse = _shares(width)
        terms = [(self._speed, 1.0)]
        for index, share in _shares(shape.num_sequences):
            kinds, widths = self._kinds[index], self._widths[index]
            terms.append((self._sizes[index], share))
            terms += [(widths[i], share * part) for i, part in coarse]
            terms.append((kinds[left], share * (1.0 - right)))
            terms.append((kinds[left + 1], share * right))
        return terms


class DraftCosts:
    """Seconds of a drafting forward by its blocks, which need not be whole."""

    def __init__(self, timed: Cost) -> None:
        """`timed` says what was measured at start-up."""
        self._timed = timed
        self._filter = _Filter()
        self._speed = _Term(_SPEED, _SPEED_DRIFT)
        self._sizes = [_Term(_SIZE, _DRIFT) for _ in _SIZES]

    def __call__(self, num_blocks: float) -> float:
        return self._timed(num_blocks) * exp(_sum(self._terms(num_blocks)))

    def update(self, num_blocks: float, seconds: float) -> None:
        """Learn from one forward."""
        error = log(max(seconds, 1e-9) / self(num_blocks))
        self._filter.learn(self._terms(num_blocks), error)

    def pass_step(self, slower: float) -> None:
        """A step has gone by, and the machine seems slower by this factor."""
        self._filter.now += 1
        self._speed.value += log(slower)

    def _terms(self, num_blocks: float) -> Terms:
        sizes = [(self._sizes[index], share) for index, share in _shares(num_blocks)]
        return [(self._speed, 1.0), *sizes]


def _sum(terms: Terms) -> float:
    return sum(term.value * weight for term, weight in terms)


def _shares(count: float) -> list[tuple[int, float]]:
    """The knots of `_SIZES` around a count, with their weights."""
    position = min(log2(max(count, 1.0)), float(_SIZES[-1]))
    left = int(position)
    above = position - left
    return [(left, 1.0 - above), (left + 1, above)] if above else [(left, 1.0)]
