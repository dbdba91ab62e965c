"""A machine and texts that are made up or were recorded, for the step planner to run against.

Steps are drawn with noise and luck, but a planner's score knows neither: it is made of what its
plans give and cost on average. So a score tells how good the plans are, to a tenth of a percent.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from operator import mul
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple, Protocol

from engine.draft_planner import CostCurve
from engine.plan_stints import Ask
from engine.step_costs import DraftCosts, StepShape
from engine.step_planner import StepPlanner, StepTime

LONGEST = 7
NUM_TOKENS = 128
_RATED_EVERY = 3
"""Steps between two looks at what every fixed length would give: they cost more than a plan.
A lone sequence is looked at in every step, for no other makes up for it."""


class Machine(Protocol):
    """What a step costs on average, in seconds: all but drafting forwards, and these."""

    def rest(self, shape: StepShape, step: int) -> float: ...
    def draft(self, num_blocks: int, step: int) -> float: ...


@dataclass(frozen=True)
class MadeUp:
    """Costs by formulas of sequences and rows, and of blocks; `change` sets in at a step."""

    steps: Callable[[int, int], float]
    drafts: Callable[[int], float]
    change: Callable[[int], tuple[float, float]] = lambda step: (1.0, 1.0)

    def rest(self, shape: StepShape, step: int) -> float:
        return self.steps(*shape) * self.change(step)[0]

    def draft(self, num_blocks: int, step: int) -> float:
        return self.drafts(num_blocks) * self.change(step)[1] if num_blocks else 0.0


class Fate(NamedTuple):
    """How a sequence's text treats drafts: chances of its positions, given all before them."""

    chances: Seq[float]

    @property
    def survivals(self) -> list[float]:
        return list(accumulate(self.chances, mul))


Fates = Callable[[Random, int], Fate]
"""The fate of a sequence that starts at a step."""


@dataclass
class _Live:
    name: str
    fate: Fate
    num_left: int
    gains: list[float] = field(init=False)  # expected tokens by draft length

    def __post_init__(self) -> None:
        self.gains = list(accumulate(self.fate.survivals, initial=1.0))

    def limit(self) -> int:
        return min(LONGEST, self.num_left - 1)


@dataclass
class Score:
    """What a planner would have reached on average, against each fixed draft length."""

    num_tokens: float = 0.0
    seconds: float = 0.0
    fixed: list[float] = field(default_factory=lambda: [0.0] * (LONGEST + 1))
    """Tokens of each fixed length, 0 included, in the same time."""

    @property
    def best_length(self) -> int:
        return max(range(LONGEST + 1), key=self.fixed.__getitem__)

    @property
    def against_best(self) -> float:
        return self.num_tokens / self.fixed[self.best_length]

    def share(self, length: int) -> float:
        """A fixed length's rate, as a share of the best one's."""
        return self.fixed[length] / self.fixed[self.best_length]


@dataclass
class World:
    """A closed loop: whenever a sequence ends, another one takes its place."""

    machine: Machine
    fates: Fates
    at_once: int
    seed: int = 0
    noise: float = 0.12
    outliers: float = 0.01  # share of the steps that take two to eight times as long
    timed: Machine | None = None  # what start-up saw, where that was another machine
    chill: float = 0.0
    """Share of its time that a step without drafts takes longer after one with them; of the next
    ones a fifth less each. What the drafter's weights have driven out of the caches comes back."""
    plan_s: float = 0.0  # what a plan takes
    lesson_s: float = 0.0  # what learning from a step takes
    score: Score = field(default_factory=Score)
    step: int = 0

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        self._rates: list[float] = []  # of the fixed lengths, tokens a second
        self._num_started = 0
        self._live: list[_Live] = []
        self._chilled = 0.0
        self._thought_s = 0.0  # in the step under way

    @cached_property
    def planner(self) -> StepPlanner:
        """Told at start what `models.forward_costs` would have timed: forwards of rows, four a
        sequence, and of batches."""
        timed = self.timed or self.machine
        rows = [(n, timed.rest(StepShape(max(1, n // 4), n), 0)) for n in (1, 4, 16, 64, 128)]
        blocks = [(n, timed.draft(n, 0)) for n in (1, 2, 4, 8, 16)]
        self.draft_costs = DraftCosts(CostCurve(blocks))
        shapes = [StepShape(n, n * width) for n in (1, 2, 4, 8, 16) for width in (8, 4, 1)]
        batches = [(shape, timed.rest(shape, 0)) for shape in shapes]
        return StepPlanner(LONGEST, CostCurve(rows), self.draft_costs, batches)

    def run(self, num_steps: int, *, unscored: int = 0) -> Score:
        """Go on; the first steps, in which the planner has everything to learn, may not count."""
        for number in range(num_steps):
            self._fill()
            asks = [Ask(one.name, one.limit()) for one in self._live]
            lengths = self.planner.plan([ask.sequence_id for ask in asks], asks.__getitem__)
            if not self.planner.is_resting:
                self._think(self.plan_s)
            self._chilled = self.chill if any(lengths) else self._chilled * 0.8
            if number % (1 if self.at_once == 1 else _RATED_EVERY) == 0:
                self._rates = self._rate_fixed()
            if number >= unscored:
                self._rate(lengths)
            self._advance(lengths)
            self.step += 1
        return self.score

    def seconds(self, lengths: Seq[int]) -> tuple[float, float]:
        shape = StepShape(len(lengths), len(lengths) + sum(lengths))
        num_blocks = sum(length > 0 for length in lengths)
        return self.machine.rest(shape, self.step), self.machine.draft(num_blocks, self.step)

    def _chilly(self, lengths: Seq[int]) -> tuple[float, float]:
        """As it is after the steps before it; fixed lengths never follow on another kind."""
        rest_s, draft_s = self.seconds(lengths)
        return rest_s if draft_s else rest_s * (1.0 + self._chilled), draft_s

    def _think(self, seconds: float) -> None:
        self._thought_s += seconds
        self.planner.charge(seconds)

    def _fill(self) -> None:
        while len(self._live) < self.at_once:
            self._num_started += 1
            fate = self.fates(self._random, self.step)
            left = NUM_TOKENS if self.step else self._random.randrange(1, NUM_TOKENS + 1)
            self._live.append(_Live(str(self._num_started), fate, left))

    def _rate(self, lengths: Seq[int]) -> None:
        own = sum(self._chilly(lengths)) + self._thought_s
        self.score.seconds += own
        self.score.num_tokens += self._gain(lengths)
        for length, rate in enumerate(self._rates):
            self.score.fixed[length] += own * rate

    def _rate_fixed(self) -> list[float]:
        rates = []
        for length in range(LONGEST + 1):
            fixed = [min(length, one.limit()) for one in self._live]
            rates.append(self._gain(fixed) / sum(self.seconds(fixed)))
        return rates

    def _gain(self, lengths: Seq[int]) -> float:
        return sum(one.gains[n] for one, n in zip(self._live, lengths, strict=True))

    def _advance(self, lengths: Seq[int]) -> None:
        rest_s, draft_s = (seconds * self._jitter() for seconds in self._chilly(lengths))
        for one, length in zip(self._live, lengths, strict=True):
            num_accepted = 0
            while num_accepted < length and (
                self._random.random() < one.fate.chances[num_accepted]
            ):
                num_accepted += 1
            self.planner.take(one.name, length, num_accepted)
            one.num_left -= 1 + num_accepted
            if one.num_left <= 0:
                self.planner.forget(one.name)
        shape = StepShape(len(lengths), len(lengths) + sum(lengths))
        self._thought_s = 0.0
        if not draft_s and self.planner.pass_rest(shape, rest_s):
            pass
        elif self.planner.observe(StepTime(shape, rest_s + draft_s, draft_s)):
            self._think(self.lesson_s)
            if draft_s:
                self.draft_costs.update(sum(length > 0 for length in lengths), draft_s)
        self._live = [one for one in self._live if one.num_left > 0]

    def _jitter(self) -> float:
        factor = math.exp(self._random.gauss(0.0, self.noise))
        if self._random.random() < self.outliers:
            factor *= self._random.uniform(2.0, 8.0)
        return factor


class Recorded:
    """Steps and drafts of the shipped models, recorded on two cores (`planner_trace.json`).

    Costs are the medians of the steps of each load and draft length, and in between are drawn
    straight. A sequence's fate is a recorded sequence's: how often each position stood.
    """

    def __init__(self) -> None:
        path = Path(__file__).with_name("planner_trace.json")
        trace = json.loads(path.read_text("utf-8"))
        self.loads = sorted({run["at_once"] for run in trace["runs"]})
        self._rests: dict[int, list[tuple[float, float]]] = {}
        drafts: dict[int, list[float]] = {}
        for run in trace["runs"]:
            steps = run["steps"]
            if not steps:
                continue
            width = median(rows / sequences for sequences, rows, *_ in steps)
            rest = median(total - drafting for *_, drafting, total in steps)
            self._rests.setdefault(run["at_once"], []).append((width, rest / 1e3))
            for _, _, num_blocks, drafting, _ in steps:
                if num_blocks:
                    drafts.setdefault(num_blocks, []).append(drafting / 1e3)
        self._drafts = [(float(n), median(seconds)) for n, seconds in sorted(drafts.items())]
        self._fates = [Fate(_chances(counts)) for counts in trace["accepted"]]

    def rest(self, shape: StepShape, step: int) -> float:
        width = shape.num_rows / shape.num_sequences
        below = max(load for load in self.loads if load <= shape.num_sequences)
        above = min(load for load in self.loads if load >= shape.num_sequences)
        low, high = (_between(sorted(self._rests[load]), width) for load in (below, above))
        share = (shape.num_sequences - below) / (above - below) if above > below else 0.0
        return low + (high - low) * share

    def draft(self, num_blocks: int, step: int) -> float:
        return _between(self._drafts, float(num_blocks)) if num_blocks else 0.0

    def fates(self, random: Random, step: int) -> Fate:
        return random.choice(self._fates)


def _chances(num_accepted: Seq[int]) -> list[float]:
    """By position, from how many tokens of each full draft stood; with a little prior belief."""
    reached = [sum(n >= j for n in num_accepted) for j in range(LONGEST + 1)]
    return [(reached[j + 1] + 0.5) / (reached[j] + 1.0) for j in range(LONGEST)]


def _between(points: Seq[tuple[float, float]], size: float) -> float:
    sizes = [at for at, _ in points]
    right = min(max(bisect_left(sizes, size), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return max(y0 + (y1 - y0) * (size - x0) / (x1 - x0), 0.5 * min(y0, y1))
